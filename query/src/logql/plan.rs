//! A log query made ready to run: which part of its pipeline runs on columns, and which row by row.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch, StringArray},
    datatypes::TimestampNanosecondType,
};
use storage::{RowFilter, ScanError, model::Labels};

use super::{
    ast::{LineOp, LogQuery, NameOrMatcher, Stage},
    entry::{self, Entries, Kind, Label, Need},
    error::QueryError,
    stage::{
        extract::{self, Extractor},
        label_filter::{ERROR, ERROR_DETAILS, LabelTest},
        line_filter::LineTest,
    },
};

/// One entry on its way through the row stages.
pub struct Row<'a> {
    pub ts: i64,
    pub line: Cow<'a, str>,
    /// Sorted by name.
    pub labels: Vec<Label>,
}

impl Row<'_> {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.labels.binary_search_by(|l| (*l.name).cmp(name)).ok().map(|i| &*self.labels[i].value)
    }

    /// Adds an extracted label: the first of a name wins; a name that the entry came with gets `_extracted`.
    pub fn extract(&mut self, name: &str, value: &str) {
        let parsed = |l: &Label| l.kind == Kind::Parsed;
        match self.labels.binary_search_by(|l| (*l.name).cmp(name)) {
            Err(_) => self.set(name, value),
            Ok(i) if parsed(&self.labels[i]) => {}
            Ok(_) => {
                let renamed = format!("{name}_extracted");
                if !self.labels.iter().any(|l| *l.name == *renamed && parsed(l)) {
                    self.set(&renamed, value);
                }
            }
        }
    }

    /// Sets a parsed label, in place of one of that name.
    pub fn set(&mut self, name: &str, value: &str) {
        let label = Label { name: name.into(), value: value.into(), kind: Kind::Parsed };
        match self.labels.binary_search_by(|l| (*l.name).cmp(name)) {
            Ok(i) => self.labels[i] = label,
            Err(i) => self.labels.insert(i, label),
        }
    }

    /// Marks the entry as faulty, unless it is already.
    pub fn fail(&mut self, code: &str, details: &str) {
        if self.get(ERROR).is_none() {
            self.set(ERROR, code);
            self.set(ERROR_DETAILS, details);
        }
    }
}

/// A stage that runs row by row.
pub enum RowStage {
    Line(LineTest),
    Labels(LabelTest),
    Drop(Vec<NameOrMatcher>),
    Keep(Vec<NameOrMatcher>),
    Extract(Extractor),
    Decolorize,
}

impl RowStage {
    /// One of a pipeline of so `many` regular expressions.
    fn new(stage: &Stage, many: usize) -> Result<Self, QueryError> {
        Ok(match stage {
            Stage::Line(f) => RowStage::Line(LineTest::new(f, many)?),
            Stage::Labels(f) => RowStage::Labels(LabelTest::new(f)?),
            Stage::Drop(names) => RowStage::Drop(names.clone()),
            Stage::Keep(names) => RowStage::Keep(names.clone()),
            Stage::Json(_) => return Err(QueryError::unsupported("the parser `json`")),
            Stage::Logfmt { strict: true, .. } => {
                return Err(QueryError::unsupported("the parser `logfmt` with `--strict`"));
            }
            Stage::Logfmt { extract, .. } if !extract.is_empty() => {
                return Err(QueryError::unsupported("the parser `logfmt` with label names"));
            }
            Stage::Logfmt { keep_empty, .. } => RowStage::Extract(Extractor::Logfmt { keep_empty: *keep_empty }),
            Stage::Regexp(text) => RowStage::Extract(Extractor::regexp(text, many)?),
            Stage::Pattern(text) => RowStage::Extract(Extractor::pattern(text)?),
            Stage::Unpack => return Err(QueryError::unsupported("the parser `unpack`")),
            Stage::LineFormat(_) => return Err(QueryError::unsupported("the stage `line_format`")),
            Stage::LabelFormat(_) => return Err(QueryError::unsupported("the stage `label_format`")),
            Stage::Decolorize => RowStage::Decolorize,
        })
    }

    /// False if the entry is dropped.
    fn run(&self, row: &mut Row<'_>) -> bool {
        match self {
            RowStage::Line(t) => t.keep(&row.line),
            RowStage::Labels(t) => {
                let mut error = None;
                let keep = t.keep(&|n| row.get(n), row.get(ERROR).is_some(), &mut error);
                if keep && let Some(details) = error {
                    row.fail("LabelFilterErr", &details);
                }
                keep
            }
            RowStage::Drop(names) => {
                row.labels.retain(|l| !names.iter().any(|n| names_label(n, l)));
                true
            }
            RowStage::Keep(names) => {
                row.labels
                    .retain(|l| matches!(&*l.name, ERROR | ERROR_DETAILS) || names.iter().any(|n| names_label(n, l)));
                true
            }
            RowStage::Extract(e) => {
                e.run(row);
                true
            }
            RowStage::Decolorize => {
                if let Some(plain) = extract::decolorize(&row.line) {
                    row.line = Cow::Owned(plain);
                }
                true
            }
        }
    }

    /// Whether it looks at labels only, so that its effect is the same for entries with equal labels.
    fn labels_only(&self) -> bool {
        match self {
            RowStage::Line(_) | RowStage::Extract(_) | RowStage::Decolorize => false,
            RowStage::Labels(_) | RowStage::Drop(_) | RowStage::Keep(_) => true,
        }
    }

    /// Labels that must be known before the stage, given those needed behind it.
    fn need_before(&self, after: Need) -> Need {
        let matched = |names: &[NameOrMatcher]| {
            Need::names(names.iter().filter_map(|n| match n {
                NameOrMatcher::Matcher(m) => Some(m.name().to_owned()),
                NameOrMatcher::Name(_) => None,
            }))
        };
        match self {
            RowStage::Line(_) | RowStage::Decolorize => after,
            // A label that is there already renames the extracted one.
            RowStage::Extract(_) => match after {
                Need::All => Need::All,
                Need::Names(names) => {
                    let bare = names.iter().filter_map(|n| n.strip_suffix("_extracted").map(str::to_owned));
                    let bare: Vec<String> = bare.collect();
                    Need::names(names.into_iter().chain(bare))
                }
            },
            RowStage::Labels(t) => {
                let mut names = Vec::new();
                t.names(&mut names);
                after.merge(Need::names(names))
            }
            RowStage::Drop(names) => after.merge(matched(names)),
            RowStage::Keep(names) => {
                let kept = names.iter().map(|n| match n {
                    NameOrMatcher::Name(n) => n.clone(),
                    NameOrMatcher::Matcher(m) => m.name().to_owned(),
                });
                match after {
                    Need::All => Need::names(kept.chain([ERROR.to_owned(), ERROR_DETAILS.to_owned()])),
                    some => some.merge(matched(names)),
                }
            }
        }
    }
}

fn names_label(n: &NameOrMatcher, label: &Label) -> bool {
    match n {
        NameOrMatcher::Name(n) => **n == *label.name,
        NameOrMatcher::Matcher(m) => m.name() == &*label.name && m.matches_value(&label.value),
    }
}

/// Regular expressions of a stage, but those of matchers.
fn regexes(stage: &Stage) -> usize {
    match stage {
        Stage::Line(f) if matches!(f.op, LineOp::Matches | LineOp::NotMatches) => f.operands.len(),
        Stage::Regexp(_) => 1,
        _ => 0,
    }
}

/// A compiled pipeline.
pub struct Pipeline {
    lines: Vec<LineTest>,
    labels: Vec<LabelTest>,
    rest: Vec<RowStage>,
}

impl Pipeline {
    /// Line filters go to the front past every stage that leaves the line alone, as in Loki.
    pub fn new(query: &LogQuery) -> Result<Self, QueryError> {
        let mut out = Pipeline { lines: Vec::new(), labels: Vec::new(), rest: Vec::new() };
        let mut line_changed = false;
        let many = query.stages.iter().map(regexes).sum();
        for stage in &query.stages {
            match stage {
                Stage::Line(f) if !line_changed => out.lines.push(LineTest::new(f, many)?),
                Stage::Labels(f) if out.rest.is_empty() => {
                    let test = LabelTest::new(f)?;
                    let mut names = Vec::new();
                    test.names(&mut names);
                    if test.is_plain() && !names.iter().any(|n| n == ERROR || n == ERROR_DETAILS) {
                        out.labels.push(test);
                    } else {
                        out.rest.push(RowStage::Labels(test));
                    }
                }
                _ => {
                    line_changed |= matches!(stage, Stage::LineFormat(_) | Stage::Unpack);
                    out.rest.push(RowStage::new(stage, many)?);
                }
            }
        }
        Ok(out)
    }

    /// Labels that must be read so that those in `output` come out right.
    pub fn need(&self, output: Need) -> Need {
        self.rest.iter().rev().fold(output, |need, stage| stage.need_before(need))
    }

    fn filter_need(&self) -> Need {
        let mut names = Vec::new();
        for t in &self.labels {
            t.names(&mut names);
        }
        Need::names(names)
    }

    /// Leaves out the row stages if all they do is to name labels: for a query that looks at none. Loki does the same, which
    /// shows where a parser would have failed.
    pub fn without_parsers(mut self) -> Self {
        let names_only = |s: &RowStage| matches!(s, RowStage::Extract(_) | RowStage::Drop(_) | RowStage::Keep(_));
        if self.rest.iter().all(names_only) {
            self.rest.clear();
        }
        self
    }

    pub fn has_row_stages(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Whether the row stages look at labels only.
    pub fn labels_only(&self) -> bool {
        self.rest.iter().all(RowStage::labels_only)
    }

    /// Runs the row stages; false if the entry is dropped.
    pub fn run(&self, row: &mut Row<'_>) -> bool {
        self.rest.iter().all(|s| s.run(row))
    }
}

/// The part of a pipeline that decides which rows come, evaluated inside the scan.
pub struct PipelineFilter {
    pipeline: Arc<Pipeline>,
    columns: Vec<&'static str>,
    label_need: Need,
    label_columns: Vec<&'static str>,
    /// Also run the row stages, because the scan counts rows to a limit.
    rows: Option<(Need, Vec<&'static str>)>,
}

impl PipelineFilter {
    /// `None` if every row comes. `whole`: the row stages decide too.
    pub fn of(pipeline: &Arc<Pipeline>, streams: &[Arc<Labels>], whole: bool) -> Option<Arc<dyn RowFilter>> {
        let drops = pipeline.rest.iter().any(|s| matches!(s, RowStage::Line(_) | RowStage::Labels(_)));
        let whole = whole && drops;
        if pipeline.lines.is_empty() && pipeline.labels.is_empty() && !whole {
            return None;
        }
        let label_need = pipeline.filter_need();
        let label_columns = entry::columns(&label_need, streams);
        let rows = whole.then(|| {
            let need = pipeline.need(Need::names([]));
            let columns = entry::columns(&need, streams);
            (need, columns)
        });
        let mut columns = label_columns.clone();
        if !pipeline.lines.is_empty() || whole {
            columns.push("body");
        }
        if let Some((_, more)) = &rows {
            columns.extend(more);
        }
        columns.sort_unstable();
        columns.dedup();
        Some(Arc::new(PipelineFilter { pipeline: pipeline.clone(), columns, label_need, label_columns, rows }))
    }

    fn label_mask(&self, batch: &RecordBatch, mask: &mut [bool]) -> Result<(), ScanError> {
        let mut entries = Entries::new(batch, &self.label_need, &self.label_columns)?;
        let tests = &self.pipeline.labels;
        let verdict = |labels: &[Label]| {
            let get = |name: &str| labels.binary_search_by(|l| (*l.name).cmp(name)).ok().map(|i| &*labels[i].value);
            tests.iter().all(|t| t.keep(&get, false, &mut None))
        };
        if entries.has_row_labels() {
            for (row, keep) in mask.iter_mut().enumerate() {
                *keep = *keep && verdict(&entries.labels(row));
            }
            return Ok(());
        }
        let mut known: HashMap<(u32, u8), bool> = HashMap::new();
        let mut last = None;
        for (row, keep) in mask.iter_mut().enumerate() {
            if !*keep {
                continue;
            }
            let combination = entries.combination(row);
            let key = (combination, entries.line_level(row, combination));
            *keep = match last {
                Some((k, v)) if k == key => v,
                _ => {
                    let v = *known.entry(key).or_insert_with(|| verdict(&entries.labels(row)));
                    last = Some((key, v));
                    v
                }
            };
        }
        Ok(())
    }
}

/// The column of lines.
pub fn bodies(batch: &RecordBatch) -> Result<&StringArray, ScanError> {
    batch
        .column_by_name("body")
        .and_then(|c| c.as_string_opt::<i32>())
        .ok_or_else(|| ScanError::Internal("batch has no column body of strings".into()))
}

/// The column of times, nanoseconds.
pub fn times(batch: &RecordBatch) -> Result<&[i64], ScanError> {
    batch
        .column_by_name("ts")
        .and_then(|c| c.as_primitive_opt::<TimestampNanosecondType>())
        .map(|c| c.values().as_ref())
        .ok_or_else(|| ScanError::Internal("batch has no column ts of nanoseconds".into()))
}

impl RowFilter for PipelineFilter {
    fn columns(&self) -> &[&'static str] {
        &self.columns
    }

    fn keep(&self, batch: &RecordBatch) -> Result<BooleanArray, ScanError> {
        let mut mask = vec![true; batch.num_rows()];
        // Labels first where they cost a look per combination, lines first where labels need the line.
        let labels_first = !self.label_columns.contains(&"body");
        let labels = !self.pipeline.labels.is_empty();
        if labels && labels_first {
            self.label_mask(batch, &mut mask)?;
        }
        if !self.pipeline.lines.is_empty() {
            let bodies = bodies(batch)?;
            for test in &self.pipeline.lines {
                test.mask(bodies, &mut mask);
            }
        }
        if labels && !labels_first {
            self.label_mask(batch, &mut mask)?;
        }
        if let Some((need, columns)) = &self.rows {
            let bodies = bodies(batch)?;
            let mut entries = Entries::new(batch, need, columns)?;
            for (i, keep) in mask.iter_mut().enumerate() {
                if *keep {
                    let mut row = Row { ts: 0, line: Cow::Borrowed(bodies.value(i)), labels: entries.labels(i) };
                    *keep = self.pipeline.run(&mut row);
                }
            }
        }
        Ok(BooleanArray::from(mask))
    }
}
