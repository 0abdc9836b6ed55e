//! Rows of native histograms, and what of them OTLP cannot say.

use storage::model::{batch::HistogramRow, json};

use crate::codec::columns::{DoubleLists, Doubles, EncodeError, Flags, SmallInts};

pub(super) struct HistogramColumns<'a> {
    ints: [SmallInts<'a>; 4],
    doubles: [Doubles<'a>; 6],
    lists: [DoubleLists<'a>; 3],
    is_float: Flags<'a>,
}

impl<'a> HistogramColumns<'a> {
    pub fn of(rows: &'a arrow::array::RecordBatch) -> Result<Self, EncodeError> {
        let ints = |n| SmallInts::of(rows, n);
        let doubles = |n| Doubles::of(rows, n);
        let lists = |n| DoubleLists::of(rows, n);
        Ok(HistogramColumns {
            ints: [ints("schema")?, ints("positive_offset")?, ints("negative_offset")?, ints("reset_hint")?],
            doubles: [
                doubles("zero_threshold")?,
                doubles("zero_count")?,
                doubles("count")?,
                doubles("sum")?,
                doubles("min")?,
                doubles("max")?,
            ],
            lists: [lists("positive_counts")?, lists("negative_counts")?, lists("custom_bounds")?],
            is_float: Flags::of(rows, "is_float")?,
        })
    }

    pub fn at(&self, row: usize) -> HistogramRow {
        let int = |i: usize| self.ints[i].at(row).unwrap_or(0);
        let double = |i: usize| self.doubles[i].at(row);
        HistogramRow {
            schema: int(0),
            zero_threshold: double(0).unwrap_or(0.0),
            zero_count: double(1).unwrap_or(0.0),
            count: double(2).unwrap_or(0.0),
            sum: double(3).unwrap_or(0.0),
            min: double(4),
            max: double(5),
            positive_offset: int(1),
            positive_counts: self.lists[0].at(row).unwrap_or_default(),
            negative_offset: int(2),
            negative_counts: self.lists[1].at(row).unwrap_or_default(),
            custom_bounds: self.lists[2].at(row),
            reset_hint: int(3),
            is_float: self.is_float.at(row).unwrap_or(false),
        }
    }
}

pub(super) trait Whole {
    /// Whether OTLP's exponential histogram can say all of it.
    fn is_whole(&self) -> bool;
    fn to_json(&self) -> String;
}

impl Whole for HistogramRow {
    fn is_whole(&self) -> bool {
        let whole = |v: &f64| v.fract() == 0.0 && *v >= 0.0 && *v < 1.8e19;
        let counts = self.positive_counts.iter().chain(&self.negative_counts);
        (-4..=8).contains(&self.schema)
            && self.custom_bounds.is_none()
            && !self.is_float
            && self.reset_hint == 0
            && self.zero_threshold != 0.0
            && whole(&self.count)
            && whole(&self.zero_count)
            && counts.into_iter().all(whole)
            && (!self.positive_counts.is_empty() || self.positive_offset == 0)
            && (!self.negative_counts.is_empty() || self.negative_offset == 0)
    }

    fn to_json(&self) -> String {
        use std::fmt::Write as _;
        let double = |v: f64| {
            let mut out = String::new();
            json::write_double(&mut out, v);
            out
        };
        let list = |values: &[f64]| format!("[{}]", values.iter().map(|v| double(*v)).collect::<Vec<_>>().join(","));
        let mut out = format!(
            "{{\"schema\":{},\"zero_threshold\":{},\"zero_count\":{},\"count\":{},\"positive_offset\":{},\
             \"positive_counts\":{},\"negative_offset\":{},\"negative_counts\":{},\"reset_hint\":{},\"is_float\":{}",
            self.schema,
            double(self.zero_threshold),
            double(self.zero_count),
            double(self.count),
            self.positive_offset,
            list(&self.positive_counts),
            self.negative_offset,
            list(&self.negative_counts),
            self.reset_hint,
            self.is_float,
        );
        if let Some(bounds) = &self.custom_bounds {
            let _ = write!(out, ",\"custom_bounds\":{}", list(bounds));
        }
        out.push('}');
        out
    }
}
