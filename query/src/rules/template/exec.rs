//! Runs a tree over data.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    DEPTH_MAX, Host, OUTPUT_BYTES_MAX, STEPS_MAX, Value, format, functions,
    parse::{Node, Operand, Pipe, Tree},
};

struct Run<'a> {
    tree: &'a Tree,
    library: &'a BTreeMap<String, Arc<Tree>>,
    host: &'a dyn Host,
    out: String,
    variables: Vec<(String, Value)>,
    steps: usize,
    depth: usize,
}

/// How a list of nodes ended.
#[derive(PartialEq)]
enum Flow {
    On,
    Break,
    Continue,
}

pub fn run(
    tree: &Tree,
    nodes: &[Node],
    dot: Value,
    variables: &[(&str, Value)],
    library: &BTreeMap<String, Arc<Tree>>,
    host: &dyn Host,
) -> Result<String, String> {
    let variables = variables.iter().map(|(n, v)| ((*n).to_owned(), v.clone()));
    let variables = variables.chain([("$".to_owned(), dot.clone())]).collect();
    let mut run = Run { tree, library, host, out: String::new(), variables, steps: 0, depth: 0 };
    run.nodes(nodes, &dot)?;
    Ok(run.out)
}

impl Run<'_> {
    fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(format!("expansion takes more than {STEPS_MAX} steps"));
        }
        if self.out.len() > OUTPUT_BYTES_MAX {
            return Err(format!("expansion is longer than {OUTPUT_BYTES_MAX} bytes"));
        }
        Ok(())
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, String> {
        let scope = self.variables.len();
        for node in nodes {
            self.step()?;
            let flow = match node {
                Node::Text(text) => {
                    self.out.push_str(text);
                    Flow::On
                }
                Node::Action(pipe) => {
                    let value = self.pipe(pipe, dot)?;
                    if pipe.variables.is_empty() {
                        value.write(&mut self.out);
                    }
                    Flow::On
                }
                Node::If { pipe, then, otherwise } => {
                    let inner = self.variables.len();
                    let chosen = if self.pipe(pipe, dot)?.is_true() { then } else { otherwise };
                    let flow = self.nodes(chosen, dot)?;
                    self.variables.truncate(inner);
                    flow
                }
                Node::With { pipe, then, otherwise } => {
                    let inner = self.variables.len();
                    let value = self.pipe(pipe, dot)?;
                    let flow = if value.is_true() { self.nodes(then, &value)? } else { self.nodes(otherwise, dot)? };
                    self.variables.truncate(inner);
                    flow
                }
                Node::Range { pipe, body, otherwise } => self.range(pipe, body, otherwise, dot)?,
                Node::Template { name, argument } => {
                    let value = match argument {
                        Some(pipe) => self.pipe(pipe, dot)?,
                        None => Value::Nil,
                    };
                    self.template(name, value)?;
                    Flow::On
                }
                Node::Break => Flow::Break,
                Node::Continue => Flow::Continue,
            };
            if flow != Flow::On {
                self.variables.truncate(scope);
                return Ok(flow);
            }
        }
        self.variables.truncate(scope);
        Ok(Flow::On)
    }

    fn template(&mut self, name: &str, dot: Value) -> Result<(), String> {
        let (tree, library) = (self.tree, self.library);
        let (tree, nodes) = match (tree.defined.get(name), library.get(name)) {
            (Some(nodes), _) => (tree, nodes),
            (None, Some(other)) => (other.as_ref(), &other.defined[name]),
            (None, None) => return Err(format!("template {name:?} not defined")),
        };
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("templates call each other deeper than {DEPTH_MAX}"));
        }
        let mut inner = Run {
            tree,
            library,
            host: self.host,
            out: std::mem::take(&mut self.out),
            variables: vec![("$".to_owned(), dot.clone())],
            steps: self.steps,
            depth: self.depth,
        };
        let done = inner.nodes(nodes, &dot);
        self.out = inner.out;
        self.steps = inner.steps;
        self.depth -= 1;
        done.map(|_| ())
    }

    fn range(&mut self, pipe: &Pipe, body: &[Node], otherwise: &[Node], dot: &Value) -> Result<Flow, String> {
        let scope = self.variables.len();
        let over = self.commands(pipe, dot)?;
        let items: Vec<(Value, Value)> = match &over {
            Value::Nil => Vec::new(),
            Value::List(items) => items.iter().enumerate().map(|(i, v)| (Value::Int(i as i64), v.clone())).collect(),
            Value::Map(map) => map.iter().map(|(n, v)| (Value::text(n.as_str()), v.clone())).collect(),
            Value::Int(n) => {
                let n = usize::try_from(*n).unwrap_or(0).min(STEPS_MAX);
                (0..n).map(|i| (Value::Int(i as i64), Value::Int(i as i64))).collect()
            }
            other => return Err(format!("range can't iterate over {}", other.to_text())),
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, item) in items {
            self.step()?;
            match pipe.variables.as_slice() {
                [] => {}
                names if pipe.assigns => {
                    let values = [key.clone(), item.clone()];
                    let values = if names.len() == 1 { &values[1..] } else { &values[..] };
                    for (name, value) in names.iter().zip(values) {
                        self.assign(name, value.clone())?;
                    }
                }
                [one] => self.variables.push((one.clone(), item.clone())),
                [index, value, ..] => {
                    self.variables.push((index.clone(), key.clone()));
                    self.variables.push((value.clone(), item.clone()));
                }
            }
            let flow = self.nodes(body, &item)?;
            self.variables.truncate(scope);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn assign(&mut self, name: &str, value: Value) -> Result<(), String> {
        match self.variables.iter_mut().rev().find(|(n, _)| n == name) {
            Some(slot) => slot.1 = value,
            None => return Err(format!("undefined variable {name:?}")),
        }
        Ok(())
    }

    /// The value, also put into the variables that the pipe declares.
    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, String> {
        let value = self.commands(pipe, dot)?;
        for name in &pipe.variables {
            if pipe.assigns {
                self.assign(name, value.clone())?;
            } else {
                self.variables.push((name.clone(), value.clone()));
            }
        }
        Ok(value)
    }

    fn commands(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, String> {
        let mut last = None;
        for command in &pipe.commands {
            self.step()?;
            last = Some(self.command(command, dot, last.take())?);
        }
        Ok(last.unwrap_or(Value::Nil))
    }

    fn command(&mut self, command: &[Operand], dot: &Value, piped: Option<Value>) -> Result<Value, String> {
        let (first, rest) = command.split_first().expect("the parser gives every command an operand");
        match first {
            Operand::Function(name) if name == "and" || name == "or" => self.and_or(name, rest, dot, piped),
            Operand::Function(name) => {
                let mut arguments = self.operands(rest, dot)?;
                arguments.extend(piped);
                functions::call(name, &arguments, self.host).map_err(|e| format!("error calling {name}: {e}"))
            }
            Operand::Fields(of, fields) if !rest.is_empty() || piped.is_some() => {
                let (method, path) = fields.split_last().expect("fields are never empty");
                let mut value = self.operand(of, dot)?;
                for name in path {
                    value = field(&value, name)?;
                }
                let mut arguments = self.operands(rest, dot)?;
                arguments.extend(piped);
                call_method(&value, method, &arguments)
            }
            _ if !rest.is_empty() || piped.is_some() => Err("can't give argument to non-function".to_owned()),
            operand => self.operand(operand, dot),
        }
    }

    fn operands(&mut self, operands: &[Operand], dot: &Value) -> Result<Vec<Value>, String> {
        operands.iter().map(|o| self.operand(o, dot)).collect()
    }

    /// Evaluates no further than needed.
    fn and_or(&mut self, name: &str, rest: &[Operand], dot: &Value, piped: Option<Value>) -> Result<Value, String> {
        let stop_at = name == "or";
        let mut last = None;
        for operand in rest {
            let value = self.operand(operand, dot)?;
            if value.is_true() == stop_at {
                return Ok(value);
            }
            last = Some(value);
        }
        piped.or(last).ok_or_else(|| format!("wrong number of args for {name}: want at least 1 got 0"))
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, String> {
        Ok(match operand {
            Operand::Dot => dot.clone(),
            Operand::Nil => Value::Nil,
            Operand::Literal(value) => value.clone(),
            Operand::Function(name) => {
                functions::call(name, &[], self.host).map_err(|e| format!("error calling {name}: {e}"))?
            }
            Operand::Variable(name) => match self.variables.iter().rev().find(|(n, _)| n == name) {
                Some((_, value)) => value.clone(),
                None => return Err(format!("undefined variable {name:?}")),
            },
            Operand::Pipe(pipe) => {
                let scope = self.variables.len();
                let value = self.pipe(pipe, dot)?;
                self.variables.truncate(scope);
                value
            }
            Operand::Fields(of, fields) => {
                let mut value = self.operand(of, dot)?;
                for name in fields {
                    value = field(&value, name)?;
                }
                value
            }
        })
    }
}

fn field(value: &Value, name: &str) -> Result<Value, String> {
    match value {
        Value::Object(fields) => match fields.get(name) {
            Some(v) => Ok(v.clone()),
            None => Err(format!("can't evaluate field {name}")),
        },
        // The methods that Alertmanager's label sets have, where no label has that name.
        Value::Map(map) => Ok(match (map.get(name), name) {
            (Some(v), _) => v.clone(),
            (None, "SortedPairs") => Value::list(
                map.iter().map(|(n, v)| Value::object([("Name", Value::text(n.as_str())), ("Value", v.clone())])),
            ),
            (None, "Names") => Value::list(map.keys().map(|n| Value::text(n.as_str()))),
            (None, "Values") => Value::list(map.values().cloned()),
            (None, _) => Value::text(""),
        }),
        Value::List(items) => {
            let of = |wanted: &str| items.iter().filter(|i| status(i) == Some(wanted)).cloned().collect::<Vec<_>>();
            let part = |key: &str| {
                Value::list(items.iter().filter_map(|i| match i {
                    Value::Object(o) => o.get(key).cloned(),
                    _ => None,
                }))
            };
            match name {
                "Firing" => Ok(Value::list(of("firing"))),
                "Resolved" => Ok(Value::list(of("resolved"))),
                "Names" => Ok(part("Name")),
                "Values" => Ok(part("Value")),
                _ => Err(format!("can't evaluate field {name} in type list")),
            }
        }
        Value::Time(_) | Value::Duration(_) => call_method(value, name, &[]),
        Value::Nil => Err(format!("nil data; no entry for key {name:?}")),
        other => Err(format!("can't evaluate field {name} in type {}", other.kind())),
    }
}

fn status(alert: &Value) -> Option<&str> {
    match alert {
        Value::Object(o) => match o.get("Status") {
            Some(Value::Text(t)) => Some(t),
            _ => None,
        },
        _ => None,
    }
}

fn call_method(value: &Value, name: &str, arguments: &[Value]) -> Result<Value, String> {
    match (value, name, arguments) {
        (Value::Time(t), "Format", [Value::Text(layout)]) => Ok(Value::text(format::time_by_layout(*t, layout))),
        (Value::Time(t), "Unix", []) => Ok(Value::Int(t.div_euclid(1_000_000_000))),
        (Value::Time(t), "UnixMilli", []) => Ok(Value::Int(t.div_euclid(1_000_000))),
        (Value::Time(t), "UTC" | "Local", []) => Ok(Value::Time(*t)),
        (Value::Time(t), "Sub", [Value::Time(other)]) => Ok(Value::Duration(t.saturating_sub(*other))),
        (Value::Time(t), "Add", [Value::Duration(d)]) => Ok(Value::Time(t.saturating_add(*d))),
        (Value::Duration(d), "Seconds", []) => Ok(Value::Float(*d as f64 / 1e9)),
        (Value::Duration(d), "Minutes", []) => Ok(Value::Float(*d as f64 / 6e10)),
        (Value::Duration(d), "Hours", []) => Ok(Value::Float(*d as f64 / 3.6e12)),
        (Value::Duration(d), "String", []) => Ok(Value::text(format::go_duration(*d))),
        (Value::Map(map), "Remove", [Value::List(names)]) => {
            let kept = map.iter().filter(|(n, _)| !names.contains(&Value::text(n.as_str())));
            Ok(Value::Map(Arc::new(kept.map(|(n, v)| (n.clone(), v.clone())).collect())))
        }
        _ => Err(format!("{} has arguments but cannot be invoked as function", name)),
    }
}
