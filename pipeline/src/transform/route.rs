//! `route`: gives each row to the output of the first condition that holds; what no condition takes goes to the output
//! `default`, or is dropped and counted. Other components name the outputs `NAME.output`.

use arrow::array::RecordBatch;
use serde::Deserialize;

use crate::{
    component::{Data, Signals, Transform, TransformError},
    condition::Condition,
    error::ConfigError,
    metrics::{Counters, DropReason},
    transform::{choice::Signal, series},
};

/// Outputs at most: each is asked for each row.
const ROUTES_MAX: usize = 64;
/// The output for what no condition takes.
const DEFAULT: &str = "default";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub inputs: Vec<String>,
    /// Asked in this order.
    pub routes: Vec<RouteConfig>,
    /// What no condition takes.
    #[serde(default)]
    pub default: Rest,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Of the output: `NAME.name`.
    pub name: String,
    /// See [`crate::condition`]; absent: every row of the signals.
    #[serde(default)]
    pub condition: Option<String>,
    /// By default those that have the fields of the condition.
    #[serde(default)]
    pub signals: Option<Vec<Signal>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rest {
    /// It goes to the output `default`.
    #[default]
    Pass,
    Drop,
}

pub struct Route {
    routes: Vec<One>,
    passes_rest: bool,
}

struct One {
    name: String,
    condition: Option<Condition>,
    signals: Signals,
}

impl Route {
    pub fn new(config: &Config, path: &str) -> Result<Route, Vec<ConfigError>> {
        let mut errors = Vec::new();
        if !(1..=ROUTES_MAX).contains(&config.routes.len()) {
            errors.push(ConfigError::new(format!("{path}.routes"), format!("expected 1 to {ROUTES_MAX} routes")));
        }
        let mut routes: Vec<One> = Vec::new();
        for (i, route) in config.routes.iter().enumerate() {
            let at = format!("{path}.routes[{i}]");
            let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if route.name.is_empty() || !route.name.chars().all(valid) {
                let message = format!("`{}` is no name of an output; use letters, digits, _ and -", route.name);
                errors.push(ConfigError::new(format!("{at}.name"), message));
            } else if route.name == DEFAULT {
                let message = "`default` is the output for what no condition takes; choose another name";
                errors.push(ConfigError::new(format!("{at}.name"), message));
            } else if routes.iter().any(|r| r.name == route.name) {
                errors.push(ConfigError::new(format!("{at}.name"), format!("the name `{}` is taken", route.name)));
            }
            let condition = match route.condition.as_deref().map(Condition::parse) {
                None => None,
                Some(Ok(condition)) => Some(condition),
                Some(Err(e)) => {
                    let mut error = ConfigError::new(format!("{at}.condition"), e.to_string());
                    error.nearest = e.nearest;
                    errors.push(error);
                    None
                }
            };
            if route.condition.is_none() && route.signals.is_none() {
                errors.push(ConfigError::new(at.clone(), "needs a `condition` or `signals`"));
            }
            let able = condition.as_ref().map_or(Signals::ALL, Condition::signals);
            let mut signals = able;
            if let Some(chosen) = &route.signals {
                let list = chosen.iter().fold(Signals::NONE, |s, one| s.or(one.signals()));
                let unable = list.without(able);
                if list.is_none() || !unable.is_none() {
                    let message = if list.is_none() {
                        "names no signal".to_owned()
                    } else {
                        format!("the condition has fields that {unable} do not have")
                    };
                    errors.push(ConfigError::new(format!("{at}.signals"), message));
                }
                signals = list.and(able);
            }
            routes.push(One { name: route.name.clone(), condition, signals });
        }
        if errors.is_empty() { Ok(Route { routes, passes_rest: config.default == Rest::Pass }) } else { Err(errors) }
    }

    /// Which output takes each row, `routes.len()` for none.
    fn choose(&self, data: &Data, rows: &RecordBatch) -> Vec<usize> {
        let mut chosen = vec![self.routes.len(); rows.num_rows()];
        for (i, route) in self.routes.iter().enumerate().filter(|(_, r)| r.signals.has(data)) {
            let none = self.routes.len();
            match &route.condition {
                None => chosen.iter_mut().filter(|at| **at == none).for_each(|at| *at = i),
                Some(condition) => {
                    let mask = condition.mask(rows);
                    let open = chosen.iter_mut().zip(mask).filter(|(at, holds)| *holds && **at == none);
                    open.for_each(|(at, _)| *at = i);
                }
            }
        }
        chosen
    }
}

impl Transform for Route {
    fn signals(&self) -> Signals {
        Signals::ALL
    }

    fn apply(&self, data: Data, _: &Counters) -> Result<Data, TransformError> {
        Ok(data)
    }

    fn outputs(&self) -> Vec<(String, Signals)> {
        let named = self.routes.iter().map(|r| (r.name.clone(), r.signals));
        named.chain(self.passes_rest.then(|| (DEFAULT.to_owned(), Signals::ALL))).collect()
    }

    fn split(&self, data: Data, counters: &Counters) -> Result<Vec<Data>, TransformError> {
        let chosen = match &data {
            Data::Logs(rows) | Data::Spans(rows) => self.choose(&data, rows),
            Data::Metrics(m) => self.choose(&data, &m.series),
        };
        let (before, count) = (data.rows(), self.routes.len() + usize::from(self.passes_rest));
        let mut parts = Vec::with_capacity(count);
        for output in 0..count {
            let mask: Vec<bool> = chosen.iter().map(|at| *at == output).collect();
            parts.push(match &data {
                Data::Logs(rows) => Data::Logs(series::keep_rows(rows.clone(), mask)?),
                Data::Spans(rows) => Data::Spans(series::keep_rows(rows.clone(), mask)?),
                Data::Metrics(m) => Data::Metrics(series::keep_series(m.clone(), &mask)?),
            });
        }
        let after: usize = parts.iter().map(Data::rows).sum();
        counters.dropped(DropReason::Unrouted, (before - after) as u64);
        Ok(parts)
    }
}
