//! The syntax tree of LogQL: the whole language, including what the evaluator does not run yet.

use storage::model::Matcher;

/// A whole query.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    Log(LogQuery),
    Metric(Metric),
}

/// A stream selector and its pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct LogQuery {
    pub matchers: Vec<Matcher>,
    pub stages: Vec<Stage>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    Line(LineFilter),
    Labels(LabelFilter),
    Json(Vec<Extract>),
    Logfmt { strict: bool, keep_empty: bool, extract: Vec<Extract> },
    Regexp(String),
    Pattern(String),
    Unpack,
    LineFormat(String),
    LabelFormat(Vec<LabelFormat>),
    Decolorize,
    Drop(Vec<NameOrMatcher>),
    Keep(Vec<NameOrMatcher>),
}

/// One line filter with all its `or` operands.
#[derive(Clone, Debug, PartialEq)]
pub struct LineFilter {
    pub op: LineOp,
    /// At least one.
    pub operands: Vec<LineOperand>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineOp {
    Contains,
    NotContains,
    Matches,
    NotMatches,
    Pattern,
    NotPattern,
}

impl LineOp {
    /// Whether a line is kept when *no* operand hits.
    pub fn negated(self) -> bool {
        matches!(self, LineOp::NotContains | LineOp::NotMatches | LineOp::NotPattern)
    }

    pub fn text(self) -> &'static str {
        match self {
            LineOp::Contains => "|=",
            LineOp::NotContains => "!=",
            LineOp::Matches => "|~",
            LineOp::NotMatches => "!~",
            LineOp::Pattern => "|>",
            LineOp::NotPattern => "!>",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineOperand {
    Text(String),
    Ip(String),
}

/// `name="path"`; a bare name stands for `name="name"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extract {
    pub name: String,
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelFormat {
    Rename { to: String, from: String },
    Template { to: String, template: String },
}

#[derive(Clone, Debug, PartialEq)]
pub enum NameOrMatcher {
    Name(String),
    Matcher(Matcher),
}

#[derive(Clone, Debug, PartialEq)]
pub enum LabelFilter {
    Match(Matcher),
    Ip { name: String, negated: bool, pattern: String },
    Compare { name: String, op: CompareOp, value: Literal },
    And(Box<LabelFilter>, Box<LabelFilter>),
    Or(Box<LabelFilter>, Box<LabelFilter>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
}

impl CompareOp {
    pub fn text(self) -> &'static str {
        match self {
            CompareOp::Eq => "==",
            CompareOp::Ne => "!=",
            CompareOp::Gt => ">",
            CompareOp::Ge => ">=",
            CompareOp::Lt => "<",
            CompareOp::Le => "<=",
        }
    }

    pub fn holds<T: PartialOrd>(self, left: T, right: T) -> bool {
        match self {
            CompareOp::Eq => left == right,
            CompareOp::Ne => left != right,
            CompareOp::Gt => left > right,
            CompareOp::Ge => left >= right,
            CompareOp::Lt => left < right,
            CompareOp::Le => left <= right,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Literal {
    Number(f64),
    /// Nanoseconds.
    Duration(i64),
    Bytes(u64),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Metric {
    Number(f64),
    Vector(f64),
    Range(Box<RangeAggregation>),
    Aggregate(Box<VectorAggregation>),
    LabelReplace { inner: Box<Metric>, target: String, replacement: String, source: String, regex: String },
    Binary(Box<Binary>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeOp {
    Count,
    Rate,
    Bytes,
    BytesRate,
    Absent,
    Sum,
    Avg,
    Min,
    Max,
    Stdvar,
    Stddev,
    Quantile,
    First,
    Last,
    RateCounter,
}

impl RangeOp {
    pub const ALL: [(RangeOp, &'static str); 15] = [
        (RangeOp::Count, "count_over_time"),
        (RangeOp::Rate, "rate"),
        (RangeOp::Bytes, "bytes_over_time"),
        (RangeOp::BytesRate, "bytes_rate"),
        (RangeOp::Absent, "absent_over_time"),
        (RangeOp::Sum, "sum_over_time"),
        (RangeOp::Avg, "avg_over_time"),
        (RangeOp::Min, "min_over_time"),
        (RangeOp::Max, "max_over_time"),
        (RangeOp::Stdvar, "stdvar_over_time"),
        (RangeOp::Stddev, "stddev_over_time"),
        (RangeOp::Quantile, "quantile_over_time"),
        (RangeOp::First, "first_over_time"),
        (RangeOp::Last, "last_over_time"),
        (RangeOp::RateCounter, "rate_counter"),
    ];

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(op, _)| *op)
    }

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(op, _)| *op == self).map_or("", |(_, n)| n)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct RangeAggregation {
    pub op: RangeOp,
    pub parameter: Option<f64>,
    pub query: LogQuery,
    pub unwrap: Option<Unwrap>,
    /// Nanoseconds.
    pub range: i64,
    /// Nanoseconds; may be negative.
    pub offset: i64,
    pub grouping: Option<Grouping>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Unwrap {
    pub label: String,
    pub convert: Option<Convert>,
    /// Label filters behind the unwrap.
    pub filters: Vec<LabelFilter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convert {
    Bytes,
    Duration,
    DurationSeconds,
}

impl Convert {
    pub fn name(self) -> &'static str {
        match self {
            Convert::Bytes => "bytes",
            Convert::Duration => "duration",
            Convert::DurationSeconds => "duration_seconds",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorOp {
    Sum,
    Avg,
    Min,
    Max,
    Count,
    Stddev,
    Stdvar,
    Topk,
    Bottomk,
    Sort,
    SortDesc,
    ApproxTopk,
}

impl VectorOp {
    pub const ALL: [(VectorOp, &'static str); 12] = [
        (VectorOp::Sum, "sum"),
        (VectorOp::Avg, "avg"),
        (VectorOp::Min, "min"),
        (VectorOp::Max, "max"),
        (VectorOp::Count, "count"),
        (VectorOp::Stddev, "stddev"),
        (VectorOp::Stdvar, "stdvar"),
        (VectorOp::Topk, "topk"),
        (VectorOp::Bottomk, "bottomk"),
        (VectorOp::Sort, "sort"),
        (VectorOp::SortDesc, "sort_desc"),
        (VectorOp::ApproxTopk, "approx_topk"),
    ];

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(op, _)| *op)
    }

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(op, _)| *op == self).map_or("", |(_, n)| n)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct VectorAggregation {
    pub op: VectorOp,
    pub parameter: Option<usize>,
    pub inner: Metric,
    pub grouping: Option<Grouping>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouping {
    pub without: bool,
    pub labels: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Binary {
    pub op: BinaryOp,
    pub left: Metric,
    pub right: Metric,
    pub return_bool: bool,
    pub matching: Matching,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Matching {
    /// `on` if true, else `ignoring`.
    pub on: bool,
    pub labels: Vec<String>,
    pub card: Cardinality,
    /// Labels of `group_left(...)` and `group_right(...)`.
    pub include: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Cardinality {
    #[default]
    OneToOne,
    /// `group_left`: many on the left.
    ManyToOne,
    OneToMany,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryOp {
    Or,
    And,
    Unless,
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
}

impl BinaryOp {
    /// Higher binds tighter; 1 to 6.
    pub fn precedence(self) -> u8 {
        match self {
            BinaryOp::Or => 1,
            BinaryOp::And | BinaryOp::Unless => 2,
            BinaryOp::Eq | BinaryOp::Ne | BinaryOp::Gt | BinaryOp::Ge | BinaryOp::Lt | BinaryOp::Le => 3,
            BinaryOp::Add | BinaryOp::Sub => 4,
            BinaryOp::Mul | BinaryOp::Div | BinaryOp::Mod => 5,
            BinaryOp::Pow => 6,
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            BinaryOp::Or => "or",
            BinaryOp::And => "and",
            BinaryOp::Unless => "unless",
            BinaryOp::Eq => "==",
            BinaryOp::Ne => "!=",
            BinaryOp::Gt => ">",
            BinaryOp::Ge => ">=",
            BinaryOp::Lt => "<",
            BinaryOp::Le => "<=",
            BinaryOp::Add => "+",
            BinaryOp::Sub => "-",
            BinaryOp::Mul => "*",
            BinaryOp::Div => "/",
            BinaryOp::Mod => "%",
            BinaryOp::Pow => "^",
        }
    }

    pub fn is_set(self) -> bool {
        matches!(self, BinaryOp::Or | BinaryOp::And | BinaryOp::Unless)
    }

    pub fn is_comparison(self) -> bool {
        self.precedence() == 3
    }

    /// The number an arithmetic operator gives, or for a comparison 1 and 0. Division by zero is NaN, as in Loki.
    pub fn apply(self, a: f64, b: f64) -> f64 {
        let truth = |t: bool| if t { 1.0 } else { 0.0 };
        match self {
            BinaryOp::Add => a + b,
            BinaryOp::Sub => a - b,
            BinaryOp::Mul => a * b,
            BinaryOp::Div if b == 0.0 => f64::NAN,
            BinaryOp::Div => a / b,
            BinaryOp::Mod if b == 0.0 => f64::NAN,
            BinaryOp::Mod => a % b,
            BinaryOp::Pow => a.powf(b),
            BinaryOp::Eq => truth(a == b),
            BinaryOp::Ne => truth(a != b),
            BinaryOp::Gt => truth(a > b),
            BinaryOp::Ge => truth(a >= b),
            BinaryOp::Lt => truth(a < b),
            BinaryOp::Le => truth(a <= b),
            BinaryOp::Or | BinaryOp::And | BinaryOp::Unless => f64::NAN,
        }
    }
}
