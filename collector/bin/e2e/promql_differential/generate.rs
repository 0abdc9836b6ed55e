//! Queries by a grammar: every function, operator and modifier of Prometheus 2.42 over the series of `data`.
//!
//! Left out is what depends on the version or on nothing that is promised: windows with an edge on a sample or on a step of
//! a subquery (evaluations are at half seconds or at whole ones, and ranges are chosen to miss), ties in topk, infinities in
//! means, dates of NaN and infinities (Go leaves them to the processor), `@` below predict_linear (2.42 loses points), the
//! metric name behind atan2 (2.42 keeps it).

use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};

/// What times an expression is evaluated at, in fractions of a second: those of the query, or the steps of a subquery.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grid {
    Half,
    Whole,
}

pub struct Generator {
    pub rng: StdRng,
    /// Seconds, whole, in the middle of the data.
    pub middle: i64,
}

const SIMPLE: &[&str] = &[
    "abs",
    "ceil",
    "floor",
    "exp",
    "sqrt",
    "ln",
    "log2",
    "log10",
    "sgn",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "acosh",
    "atanh",
    "deg",
    "rad",
    "sort",
    "sort_desc",
    "round",
    "timestamp",
];

const DATES: &[&str] =
    &["minute", "hour", "month", "year", "day_of_month", "day_of_week", "day_of_year", "days_in_month"];

const OVER_TIME: &[&str] = &[
    "avg_over_time",
    "sum_over_time",
    "min_over_time",
    "max_over_time",
    "count_over_time",
    "last_over_time",
    "present_over_time",
    "stddev_over_time",
    "stdvar_over_time",
    "changes",
    "resets",
    "delta",
    "idelta",
    "deriv",
    "absent_over_time",
];

const COUNTERS: &[&str] = &["rate", "increase", "irate"];

const GAUGES: &[&str] = &["temperature", "sparse"];

impl Generator {
    fn pick<'t>(&mut self, of: &[&'t str]) -> &'t str {
        of.choose(&mut self.rng).copied().unwrap_or_default()
    }

    fn chance(&mut self, p: f64) -> bool {
        self.rng.random_bool(p)
    }

    pub fn query(&mut self) -> String {
        let depth = self.rng.random_range(1..4);
        if self.chance(0.08) { self.scalar(depth, Grid::Half) } else { self.vector(depth, Grid::Half) }
    }

    fn matchers(&mut self) -> String {
        let mut all: Vec<&str> = Vec::new();
        if self.chance(0.4) {
            all.push(self.pick(&[
                "job=\"api\"",
                "job!=\"db\"",
                "job=~\"a.*|web\"",
                "job!~\"w.+\"",
                "job=~\"(?i:API)\"",
            ]));
        }
        if self.chance(0.3) {
            all.push(self.pick(&["instance=\"i1\"", "instance=~\"i[01]\"", "instance!=\"i2\"", "instance=~\".+\""]));
        }
        if self.chance(0.15) {
            all.push(self.pick(&["absent_label=\"\"", "code=~\".*\"", "code!~\"5..\"", "nothing!=\"x\""]));
        }
        if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
    }

    /// `offset` and `@`. The fixed time has the fraction of `grid`.
    fn modifiers(&mut self, grid: Grid) -> String {
        let mut out = String::new();
        if self.chance(0.15) {
            let offset = self.pick(&["1m", "7m", "-2m", "33s", "1h", "-20s"]);
            out.push_str(&format!(" offset {offset}"));
        }
        if self.chance(0.08) {
            let at = self.middle + self.rng.random_range(-1800..1800);
            let fraction = if grid == Grid::Half { ".5" } else { "" };
            // The ends of a query are at half seconds.
            let at = if grid == Grid::Half && self.chance(0.4) {
                self.pick(&["start()", "end()"]).to_owned()
            } else {
                format!("{at}{fraction}")
            };
            out.push_str(&format!(" @ {at}"));
        }
        out
    }

    fn metric(&mut self) -> &'static str {
        ["requests_total", "temperature", "sparse", "odd", "build_info", "latency_seconds_count"]
            .choose(&mut self.rng)
            .copied()
            .unwrap_or("temperature")
    }

    fn selector(&mut self, metric: &str, grid: Grid) -> String {
        format!("{metric}{}{}", self.matchers(), self.modifiers(grid))
    }

    /// A range of samples.
    fn range(&mut self, metric: &str, grid: Grid) -> String {
        let range = self.pick(&["1m", "2m", "5m", "90s", "10m", "17m", "30s", "1h"]);
        format!("{metric}{}[{range}]{}", self.matchers(), self.modifiers(grid))
    }

    /// A subquery; its windows' edges miss its steps, which are at whole seconds.
    fn subquery(&mut self, depth: u32, grid: Grid) -> String {
        let inner = self.vector(depth - 1, Grid::Whole);
        let range = self.pick(&["3m", "5m", "11m", "20m"]);
        let half = if grid == Grid::Whole { "500ms" } else { "" };
        let step = self.pick(&["30s", "1m", "17s", "2m", ""]);
        format!("({inner})[{range}{half}:{step}]{}", self.modifiers(grid))
    }

    fn any_range(&mut self, depth: u32, grid: Grid) -> String {
        if depth > 1 && self.chance(0.35) {
            return self.subquery(depth, grid);
        }
        let metric = self.pick(&["requests_total", "temperature", "sparse", "latency_seconds_count", "build_info"]);
        self.range(metric, grid)
    }

    fn number(&mut self) -> &'static str {
        ["0", "1", "2", "0.5", "-1", "3.25", "100", "1e3", "0x10", "7"].choose(&mut self.rng).copied().unwrap_or("1")
    }

    fn scalar(&mut self, depth: u32, grid: Grid) -> String {
        if depth == 0 || self.chance(0.4) {
            return match self.rng.random_range(0..6) {
                0 => "time()".to_owned(),
                1 => "pi()".to_owned(),
                _ => self.number().to_owned(),
            };
        }
        if self.chance(0.5) {
            let (a, b) = (self.scalar(depth - 1, grid), self.scalar(depth - 1, grid));
            let op = self.pick(&["+", "-", "*", "/", "%", "^", "atan2", "== bool", "< bool", ">= bool", "!= bool"]);
            return format!("({a} {op} {b})");
        }
        format!("scalar({})", self.vector(depth - 1, grid))
    }

    fn grouping(&mut self) -> String {
        match self.rng.random_range(0..8) {
            0 => " by (job)".to_owned(),
            1 => " by (job, instance)".to_owned(),
            2 => " without (instance)".to_owned(),
            3 => " without (job, code)".to_owned(),
            4 => " by (__name__)".to_owned(),
            5 => " by ()".to_owned(),
            _ => String::new(),
        }
    }

    fn vector(&mut self, depth: u32, grid: Grid) -> String {
        if depth == 0 {
            let metric = self.metric();
            return self.selector(metric, grid);
        }
        match self.rng.random_range(0..100) {
            0..=9 => {
                let metric = self.metric();
                self.selector(metric, grid)
            }
            10..=24 => {
                let (f, metric) = (self.pick(COUNTERS), self.pick(&["requests_total", "latency_seconds_count"]));
                format!("{f}({})", self.range(metric, grid))
            }
            25..=39 => {
                let f = self.pick(OVER_TIME);
                format!("{f}({})", self.any_range(depth, grid))
            }
            40..=44 => self.with_arguments(depth, grid),
            45..=54 => self.simple(depth, grid),
            55..=69 => self.aggregation(depth, grid),
            70..=74 => self.histogram(grid),
            75..=79 => self.labels(depth, grid),
            80..=94 => self.binary(depth, grid),
            95..=96 => format!("-({})", self.vector(depth - 1, grid)),
            97 => format!("vector({})", self.scalar(depth, grid)),
            _ => {
                let metric = self.pick(&["sparse", "temperature", "nothing_there"]);
                format!("absent({})", self.selector(metric, grid))
            }
        }
    }

    fn simple(&mut self, depth: u32, grid: Grid) -> String {
        let inner = self.vector(depth - 1, grid);
        match self.rng.random_range(0..10) {
            0 => format!("clamp({inner}, {}, {})", self.number(), self.number()),
            1 => format!("clamp_min({inner}, {})", self.number()),
            2 => format!("clamp_max({inner}, {})", self.number()),
            3 => format!("round({inner}, {})", self.pick(&["0.5", "10", "0.25"])),
            5 => {
                let metric = self.pick(&["temperature", "requests_total", "build_info"]);
                format!("{}({} * 1000)", self.pick(DATES), self.selector(metric, grid))
            }
            4 => format!("{}()", self.pick(&["minute", "hour", "month", "year", "day_of_week", "days_in_month"])),
            _ => match self.pick(SIMPLE) {
                // Of huge numbers they show the last bit of what came before.
                f @ ("sin" | "cos" | "tan") => format!("{f}({})", self.selector("temperature", grid)),
                f => format!("{f}({inner})"),
            },
        }
    }

    fn with_arguments(&mut self, depth: u32, grid: Grid) -> String {
        match self.rng.random_range(0..3) {
            0 => {
                let q = self.pick(&["0.1", "0.5", "0.9", "0", "1", "-1", "2"]);
                format!("quantile_over_time({q}, {})", self.any_range(depth, grid))
            }
            1 => {
                let metric = self.pick(&["temperature", "requests_total"]);
                let (range, ahead) = (self.pick(&["2m", "10m", "1h"]), self.pick(&["60", "3600", "-120"]));
                let offset = self.pick(&["", "", " offset 3m", " offset -1m"]);
                format!("predict_linear({metric}{}[{range}]{offset}, {ahead})", self.matchers())
            }
            _ => {
                let metric = self.pick(GAUGES);
                let factors = self.pick(&["0.5, 0.5", "0.1, 0.9", "0.8, 0.2"]);
                format!("holt_winters({}, {factors})", self.range(metric, grid))
            }
        }
    }

    fn aggregation(&mut self, depth: u32, grid: Grid) -> String {
        let by = self.grouping();
        match self.rng.random_range(0..12) {
            0 => {
                // Ranks without ties.
                let (op, k) = (self.pick(&["topk", "bottomk"]), self.pick(&["1", "2", "5", "0", "100"]));
                format!("{op}{by} ({k}, {})", self.selector("temperature", grid))
            }
            1 => {
                let q = self.pick(&["0.5", "0.9", "0", "1", "0.25", "-0.5", "1.5"]);
                format!("quantile{by} ({q}, {})", self.vector(depth - 1, grid))
            }
            2 => {
                let metric = self.pick(&["sparse", "odd", "build_info"]);
                format!("count_values{by} (\"value\", {})", self.selector(metric, grid))
            }
            3 => {
                let op = self.pick(&["stddev", "stdvar", "avg"]);
                let metric = self.pick(&["temperature", "sparse", "requests_total"]);
                format!("{op}{by} ({})", self.selector(metric, grid))
            }
            _ => {
                let op = self.pick(&["sum", "min", "max", "count", "group"]);
                let inner = self.vector(depth - 1, grid);
                if self.chance(0.3) { format!("{op}({inner}){by}") } else { format!("{op}{by} ({inner})") }
            }
        }
    }

    fn histogram(&mut self, grid: Grid) -> String {
        let q = self.pick(&["0.5", "0.9", "0.99", "0.1", "0", "-1", "2"]);
        let matchers = self.matchers();
        let buckets = match self.rng.random_range(0..3) {
            0 => format!("latency_seconds_bucket{matchers}{}", self.modifiers(grid)),
            1 => format!("rate(latency_seconds_bucket{matchers}[5m])"),
            _ => format!("sum by (le, job) (latency_seconds_bucket{matchers})"),
        };
        format!("histogram_quantile({q}, {buckets})")
    }

    fn labels(&mut self, depth: u32, grid: Grid) -> String {
        let inner = self.vector(depth - 1, grid);
        match self.rng.random_range(0..5) {
            0 => format!("label_replace({inner}, \"part\", \"$1-x\", \"instance\", \"i(.)\")"),
            1 => format!("label_replace({inner}, \"job\", \"\", \"job\", \"a.*\")"),
            2 => format!("label_replace({inner}, \"both\", \"${{1}}_${{2}}\", \"job\", \"(.)(.*)\")"),
            3 => format!("label_join({inner}, \"both\", \"/\", \"job\", \"instance\", \"nothing\")"),
            _ => format!("label_join({inner}, \"instance\", \"\")"),
        }
    }

    fn binary(&mut self, depth: u32, grid: Grid) -> String {
        let arithmetic = ["+", "-", "*", "/", "%", "^"];
        let comparison = ["==", "!=", "<", "<=", ">", ">="];
        let op = |g: &mut Self| {
            if g.chance(0.6) {
                g.pick(&arithmetic).to_owned()
            } else {
                let op = g.pick(&comparison);
                if g.chance(0.4) { format!("{op} bool") } else { op.to_owned() }
            }
        };
        match self.rng.random_range(0..11) {
            10 => {
                let (m, on) = (self.pick(GAUGES), self.pick(&["", "on (job, instance) "]));
                format!("deg({} atan2 {on}{})", self.selector("temperature", grid), self.selector(m, grid))
            }
            0..=1 => {
                let (v, s, op) = (self.vector(depth - 1, grid), self.scalar(depth - 1, grid), op(self));
                if self.chance(0.5) { format!("({v}) {op} ({s})") } else { format!("({s}) {op} ({v})") }
            }
            2..=3 => {
                let (a, b) = (self.vector(depth - 1, grid), self.vector(depth - 1, grid));
                let op = self.pick(&["and", "or", "unless"]);
                let on = self.pick(&["", " on (job)", " ignoring (code)", " on ()", " on (job, instance)"]);
                format!("({a}) {op}{on} ({b})")
            }
            4..=5 => {
                let (a, b, op) = (self.selector("requests_total", grid), self.selector("build_info", grid), op(self));
                let include = self.pick(&["", "version", "version, code", "nothing"]);
                if self.chance(0.5) {
                    format!("{a} {op} on (job, instance) group_left ({include}) {b}")
                } else {
                    format!("{b} {op} on (job, instance) group_right ({include}) {a}")
                }
            }
            6..=7 => {
                let (a, b, op) = (self.vector(depth - 1, grid), self.vector(depth - 1, grid), op(self));
                format!("({a}) {op} ({b})")
            }
            _ => {
                let (m, n, op) = (self.metric(), self.pick(GAUGES), op(self));
                let (a, b) = (self.selector(m, grid), self.selector(n, grid));
                let on = self.pick(&["on (job, instance)", "ignoring (code, version)"]);
                format!("{a} {op} {on} {b}")
            }
        }
    }
}
