//! `normalize`: the time of a log record from one of its fields, times too far ahead of the clock, and severity text and
//! number brought together.

use std::{borrow::Cow, sync::Arc, time::Duration};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, TimestampNanosecondArray},
    datatypes::{Int32Type, Int64Type, TimestampNanosecondType},
};
use serde::Deserialize;
use storage::{model::time::NANOS_PER_MILLI, vfs::Clock};

use crate::{
    component::{Data, Signals, Transform, TransformError},
    condition::Field,
    error::ConfigError,
    metrics::{Change, Counters, Fault},
    transform::{
        attributes::{TextColumn, Texts, get, text_of},
        choice::{Signal, Treats},
        parse::{TimeFormat, parse_time, severity_of, severity_text},
    },
    units,
};

/// What becomes of a time too far ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ahead {
    /// It becomes the latest that is allowed: now and `ahead_max`.
    #[default]
    Clamp,
    /// It becomes now.
    Replace,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub inputs: Vec<String>,
    /// Where the time of a log record is: `.body`, `.attrs.KEY`, `.resource.KEY` or `.stream.KEY`.
    #[serde(default)]
    pub time_field: Option<String>,
    /// How it may be written, as for `parse`; the first that fits counts. By default RFC 3339 or an epoch number.
    #[serde(default)]
    pub time_formats: Vec<String>,
    /// How far ahead of the clock a time may be.
    #[serde(default, deserialize_with = "units::optional_duration")]
    pub ahead_max: Option<Duration>,
    #[serde(default)]
    pub ahead: Ahead,
    /// Severity of log records: the number from the text where it is missing, the text as the number's short name.
    #[serde(default)]
    pub severity: bool,
    #[serde(default)]
    pub signals: Option<Vec<Signal>>,
}

pub struct Normalize {
    time: Option<(Field, Vec<TimeFormat>)>,
    ahead: Option<(i64, Ahead)>,
    severity: bool,
    treats: Treats,
    clock: Arc<dyn Clock>,
}

impl Normalize {
    pub fn new(config: &Config, path: &str, clock: Arc<dyn Clock>) -> Result<Normalize, Vec<ConfigError>> {
        let mut errors = Vec::new();
        if config.time_field.is_none() && config.ahead_max.is_none() && !config.severity {
            errors.push(ConfigError::new(path, "needs `time_field`, `ahead_max` or `severity: true`"));
        }
        if config.time_field.is_none() && !config.time_formats.is_empty() {
            errors.push(ConfigError::new(format!("{path}.time_formats"), "is for `time_field` only"));
        }
        let mut formats = Vec::new();
        for (i, format) in config.time_formats.iter().enumerate() {
            match TimeFormat::parse(format) {
                Ok(f) => formats.push(f),
                Err(e) => errors.push(ConfigError::new(format!("{path}.time_formats[{i}]"), e)),
            }
        }
        if config.time_formats.is_empty() {
            formats.push(TimeFormat::Auto);
        }
        let field = config.time_field.as_deref().and_then(|text| match Field::parse(text) {
            Ok(f @ (Field::Column("body") | Field::Member { .. })) if f.signals().logs => Some(f),
            Ok(_) => {
                let message = "can read `.body`, `.attrs.KEY`, `.resource.KEY` and `.stream.KEY` only";
                errors.push(ConfigError::new(format!("{path}.time_field"), message));
                None
            }
            Err(e) => {
                let mut error = ConfigError::new(format!("{path}.time_field"), e.to_string());
                error.nearest = e.nearest;
                errors.push(error);
                None
            }
        });
        // The clock concerns all; the rest only log records have.
        let able = if config.ahead_max.is_some() { Signals::ALL } else { Signals::LOGS };
        let treats = Treats::new(config.signals.as_deref(), able, path, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Normalize {
            time: field.map(|f| (f, formats)),
            ahead: config.ahead_max.map(|max| (i64::try_from(max.as_nanos()).unwrap_or(i64::MAX), config.ahead)),
            severity: config.severity,
            treats,
            clock,
        })
    }

    /// The latest time that is allowed, and what a later one becomes, in nanoseconds.
    fn bound(&self) -> Option<(i64, i64)> {
        let (max, ahead) = self.ahead?;
        let now = self.clock.now().0;
        let latest = now.saturating_add(max);
        Some((latest, if ahead == Ahead::Clamp { latest } else { now }))
    }

    /// New times of a batch; `None` when none changes. `from_field`: the field is asked (of log records).
    fn times(
        &self,
        rows: &RecordBatch,
        from_field: bool,
        counters: &Counters,
    ) -> Result<Option<ArrayRef>, TransformError> {
        let column = rows.column(rows.schema().index_of("ts")?);
        let old = column
            .as_primitive_opt::<TimestampNanosecondType>()
            .ok_or_else(|| TransformError("column `ts` is no time".into()))?;
        let mut new = old.values().to_vec();
        if let Some((field, formats)) = self.time.as_ref().filter(|_| from_field)
            && let Some(found) = read_times(rows, field, formats)
        {
            let mut unread = 0;
            for (own, found) in new.iter_mut().zip(found) {
                match found {
                    Found::Time(t) => *own = t,
                    Found::Unread => unread += 1,
                    Found::Absent => {}
                }
            }
            counters.fault(Fault::Unparsed, unread);
        }
        if let Some((latest, instead)) = self.bound() {
            new.iter_mut().filter(|t| **t > latest).for_each(|t| *t = instead);
        }
        let changed = new.iter().zip(old.values()).filter(|(a, b)| a != b).count();
        counters.changed(Change::Retimed, changed as u64);
        Ok((changed > 0).then(|| Arc::new(TimestampNanosecondArray::from(new).with_timezone("UTC")) as ArrayRef))
    }

    /// The table with its times in milliseconds within the bound.
    fn points(&self, rows: RecordBatch, counters: &Counters) -> Result<RecordBatch, TransformError> {
        let Some((latest, instead)) = self.bound() else { return Ok(rows) };
        let at = rows.schema().index_of("ts_ms")?;
        let old = rows.column(at).as_primitive::<Int64Type>();
        let latest = latest / NANOS_PER_MILLI;
        let late = old.values().iter().filter(|t| **t > latest).count();
        if late == 0 {
            return Ok(rows);
        }
        counters.changed(Change::Retimed, late as u64);
        let new: Int64Array =
            old.values().iter().map(|t| if *t > latest { instead / NANOS_PER_MILLI } else { *t }).collect();
        replace(&rows, &[("ts_ms", Arc::new(new))])
    }

    fn severities(rows: &RecordBatch, counters: &Counters) -> Result<Option<(ArrayRef, ArrayRef)>, TransformError> {
        let schema = rows.schema();
        let (numbers, texts) =
            (rows.column(schema.index_of("severity_number")?), rows.column(schema.index_of("severity_text")?));
        let numbers = numbers
            .as_primitive_opt::<Int32Type>()
            .ok_or_else(|| TransformError("column `severity_number` is no number".into()))?;
        let old = Texts::new(texts).ok_or_else(|| TransformError("column `severity_text` is not text".into()))?;
        let named: Vec<Option<i32>> = old.each(None, |t| severity_of(t).map(|(n, _)| n));
        let (mut new_numbers, mut new_texts) = (Vec::with_capacity(named.len()), TextColumn::like(texts));
        let (mut changed, mut unread) = (0, 0);
        for (row, named) in named.into_iter().enumerate() {
            let given = numbers.is_valid(row).then(|| numbers.value(row)).filter(|n| (1..=24).contains(n));
            let text = old.row(row);
            let (number, new) = match given.or(named) {
                Some(n) => (Some(n), Some(severity_text(n))),
                None => {
                    unread += u64::from(text.is_some_and(|t| !t.is_empty()));
                    (numbers.is_valid(row).then(|| numbers.value(row)), text)
                }
            };
            changed += u64::from(new != text || number != numbers.is_valid(row).then(|| numbers.value(row)));
            new_numbers.push(number);
            new_texts.push(new);
        }
        counters.fault(Fault::Unparsed, unread);
        counters.changed(Change::Reranked, changed);
        Ok((changed > 0).then(|| (Arc::new(Int32Array::from(new_numbers)) as ArrayRef, new_texts.finish())))
    }
}

/// What a field says of the time.
#[derive(Clone, Copy)]
enum Found {
    Absent,
    Unread,
    Time(i64),
}

/// `None` when the rows do not have the column.
fn read_times(rows: &RecordBatch, field: &Field, formats: &[TimeFormat]) -> Option<Vec<Found>> {
    let read =
        |text: Cow<'_, str>| formats.iter().find_map(|f| parse_time(&text, f)).map_or(Found::Unread, Found::Time);
    Some(match field {
        Field::Column(name) => {
            Texts::new(rows.column_by_name(name)?)?.each(Found::Absent, |t| read(Cow::Borrowed(t)))
        }
        Field::Member { column, key } => Texts::new(rows.column_by_name(column)?)?
            .each(Found::Absent, |json| get(json, key).map_or(Found::Absent, |v| read(text_of(v)))),
    })
}

fn replace(rows: &RecordBatch, new: &[(&str, ArrayRef)]) -> Result<RecordBatch, TransformError> {
    let schema = rows.schema();
    let mut columns = rows.columns().to_vec();
    for (name, array) in new {
        columns[schema.index_of(name)?] = array.clone();
    }
    Ok(RecordBatch::try_new(schema, columns)?)
}

impl Transform for Normalize {
    fn signals(&self) -> Signals {
        self.treats.signals
    }

    fn passes_others(&self) -> bool {
        self.treats.chosen
    }

    fn apply(&self, data: Data, counters: &Counters) -> Result<Data, TransformError> {
        Ok(match data {
            Data::Logs(mut rows) => {
                if let Some(ts) = self.times(&rows, true, counters)? {
                    rows = replace(&rows, &[("ts", ts)])?;
                }
                if self.severity
                    && let Some((numbers, texts)) = Self::severities(&rows, counters)?
                {
                    rows = replace(&rows, &[("severity_number", numbers), ("severity_text", texts)])?;
                }
                Data::Logs(rows)
            }
            Data::Spans(rows) => Data::Spans(match self.times(&rows, false, counters)? {
                Some(ts) => replace(&rows, &[("ts", ts)])?,
                None => rows,
            }),
            Data::Metrics(mut m) => {
                m.samples = self.points(m.samples, counters)?;
                m.histograms = self.points(m.histograms, counters)?;
                m.exemplars = self.points(m.exemplars, counters)?;
                Data::Metrics(m)
            }
        })
    }
}
