//! Changing sets of labels, whichever signal has them: once for each distinct set of a batch.

use std::{borrow::Cow, collections::HashMap};

use arrow::array::{Array, ArrayRef, RecordBatch};
use serde::Deserialize;
use storage::model::Labels;

use crate::{
    component::{Data, Signals, TransformError},
    transform::{
        attributes::{Attributes, TextColumn, Texts},
        series,
    },
};

/// Which set of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// What identifies its origin: series labels of metrics, stream labels of logs, resource attributes of spans.
    #[default]
    Labels,
    /// Resource attributes of logs and spans.
    Resource,
    /// Attributes of log records and spans.
    Attrs,
}

impl Target {
    /// Signals that have it.
    pub const fn signals(self) -> Signals {
        match self {
            Target::Labels => Signals::ALL,
            Target::Resource | Target::Attrs => Signals::LOGS.or(Signals::TRACES),
        }
    }
}

/// Calls `change` for each distinct set of labels; rows whose set it says `false` to leave. Values that are not text are
/// seen as their JSON, and keep their type unless they are changed.
pub(super) fn change(
    data: Data,
    target: Target,
    change: impl FnMut(&mut Labels) -> bool,
) -> Result<Data, TransformError> {
    Ok(match data {
        Data::Logs(rows) => Data::Logs(match target {
            Target::Labels => change_column(rows, "stream_labels", Some("service_name"), change)?,
            Target::Resource => change_column(rows, "resource_attrs", Some("service.name"), change)?,
            Target::Attrs => change_column(rows, "attrs", None, change)?,
        }),
        Data::Spans(rows) => Data::Spans(match target {
            Target::Labels | Target::Resource => change_column(rows, "resource_attrs", Some("service.name"), change)?,
            Target::Attrs => change_column(rows, "attrs", None, change)?,
        }),
        Data::Metrics(m) => Data::Metrics(series::relabel(m, change)?),
    })
}

/// What became of one set.
#[derive(Clone)]
enum Outcome {
    Same,
    Dropped,
    Changed {
        /// `None`: nothing is left.
        json: Option<String>,
        /// The label that names the service, where that changed.
        service: Option<Option<String>>,
    },
}

/// `service`: the label that the column `service_name` repeats.
fn change_column(
    rows: RecordBatch,
    column: &str,
    service: Option<&str>,
    mut change: impl FnMut(&mut Labels) -> bool,
) -> Result<RecordBatch, TransformError> {
    let schema = rows.schema();
    let (at, service_at) = (schema.index_of(column)?, schema.index_of("service_name")?);
    let required = !schema.field(at).is_nullable();
    let old = rows.column(at).clone();
    let texts = Texts::new(&old).ok_or_else(|| TransformError(format!("column `{column}` is not text")))?;
    let mut known: HashMap<Option<usize>, Outcome> = HashMap::new();
    let outcomes: Vec<Option<usize>> = (0..rows.num_rows()).map(|row| texts.slot(row)).collect();
    for slot in &outcomes {
        known.entry(*slot).or_insert_with(|| {
            outcome(slot.and_then(|s| texts.value(s)).unwrap_or("{}"), required, service, &mut change)
        });
    }
    if known.values().all(|o| matches!(o, Outcome::Same)) {
        return Ok(rows);
    }
    let of = |row: usize| &known[&outcomes[row]];
    let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
    let mut new = TextColumn::like(&old);
    for row in 0..rows.num_rows() {
        match of(row) {
            Outcome::Same | Outcome::Dropped => new.push(texts.row(row)),
            Outcome::Changed { json, .. } => new.push(json.as_deref()),
        }
    }
    columns[at] = new.finish();
    if known.values().any(|o| matches!(o, Outcome::Changed { service: Some(_), .. })) {
        let names = rows.column(service_at).clone();
        let old_names =
            Texts::new(&names).ok_or_else(|| TransformError("column `service_name` is not text".into()))?;
        let mut new = TextColumn::like(&names);
        for row in 0..names.len() {
            match of(row) {
                Outcome::Changed { service: Some(name), .. } => new.push(name.as_deref()),
                _ => new.push(old_names.row(row)),
            }
        }
        columns[service_at] = new.finish();
    }
    let mask = (0..rows.num_rows()).map(|row| !matches!(of(row), Outcome::Dropped)).collect();
    series::keep_rows(RecordBatch::try_new(schema, columns)?, mask)
}

fn outcome(
    json: &str,
    required: bool,
    service: Option<&str>,
    change: &mut impl FnMut(&mut Labels) -> bool,
) -> Outcome {
    let old = Attributes::read(json);
    let before: Labels = old.iter().map(|(name, _)| (name, old.get_text(name).unwrap_or_default())).collect();
    let mut after = before.clone();
    if !change(&mut after) {
        return Outcome::Dropped;
    }
    if after == before {
        return Outcome::Same;
    }
    let mut new = Attributes::default();
    for (name, value) in after.iter() {
        match old.get(name).filter(|_| old.get_text(name).as_deref() == Some(value)) {
            Some(same) => new.set_json(Cow::Borrowed(name), Cow::Borrowed(same)),
            None => new.set_text(Cow::Borrowed(name), value),
        }
    }
    // Labels know no empty text, attributes do; what nobody touched stays.
    for (name, value) in old.iter().filter(|(_, value)| *value == "\"\"") {
        if after.get(name).is_none() {
            new.set_json(Cow::Borrowed(name), Cow::Borrowed(value));
        }
    }
    Outcome::Changed {
        json: (required || !new.is_empty()).then(|| new.to_json()),
        service: service.and_then(|s| {
            let name = after.get(s);
            (name != before.get(s)).then(|| name.map(str::to_owned))
        }),
    }
}
