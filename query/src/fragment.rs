//! The part of a plan that runs where the data is: a leaf of a DataFusion plan over one table's scan.
//!
//! A [`Fragment`] says what is read in plain words: table, selection, time range, row filter, columns, order and limit, and
//! whether rows are given or counted. **For** [`crate::sql`] today. **Not for** deciding any of that: a language's planner
//! does.
//!
//! Invariants: filters are tested on every row before order, limit and count. One partition; the scan below it uses all
//! cores.

use std::{fmt, sync::Arc};

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    compute::and_kleene,
    datatypes::SchemaRef,
};
use datafusion::{
    common::{DataFusionError, Result, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::stream;
use parking_lot::Mutex;
use storage::{
    RowFilter, ScanError, ScanOrder, ScanRequest, ScanStats, ScanStream, Selector, Store,
    model::{Matcher, TenantId, TimeRange},
};

use crate::{
    limits::{Limits, SQL_SERIES_MAX},
    sql::columns::{Relation, SeriesMap, counted},
};

/// What a query's scans read from, and what they cost together.
#[derive(Clone)]
pub struct Door {
    pub store: Store,
    pub tenant: TenantId,
    pub limits: Limits,
    pub costs: Arc<Mutex<Vec<Arc<ScanStats>>>>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Door({})", self.tenant)
    }
}

#[derive(Clone, Debug)]
pub struct Fragment {
    pub relation: &'static Relation,
    /// `None`: no row can match.
    pub range: Option<TimeRange>,
    pub ids: Option<Vec<i64>>,
    pub trace: Option<[u8; 16]>,
    pub matchers: Vec<Matcher>,
    pub filter: Option<Filter>,
    /// Columns of the relation to give.
    pub columns: Vec<usize>,
    /// Give distinct rows and their counts.
    pub counted: bool,
    pub order: ScanOrder,
    pub limit: Option<usize>,
}

/// Predicates that hold together, over some columns of the relation.
#[derive(Clone, Debug)]
pub struct Filter {
    pub columns: Vec<usize>,
    pub predicates: Vec<Arc<dyn PhysicalExpr>>,
}

impl Fragment {
    pub fn schema(&self) -> SchemaRef {
        self.relation.schema_of(&self.columns, self.counted)
    }
}

/// The leaf.
pub struct FragmentExec {
    fragment: Arc<Fragment>,
    door: Door,
    properties: Arc<PlanProperties>,
}

impl FragmentExec {
    pub fn new(fragment: Fragment, door: Door) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(fragment.schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        FragmentExec { fragment: Arc::new(fragment), door, properties: Arc::new(properties) }
    }
}

impl fmt::Debug for FragmentExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FragmentExec({:?})", self.fragment)
    }
}

impl DisplayAs for FragmentExec {
    fn fmt_as(&self, _: DisplayFormatType, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = &self.fragment;
        let names: Vec<&str> = f.columns.iter().map(|c| f.relation.columns[*c].name.as_str()).collect();
        write!(out, "FragmentExec: {}({})", f.relation.name, names.join(", "))?;
        match f.range {
            None => write!(out, ", nothing")?,
            Some(TimeRange::ALL) => {}
            Some(r) => write!(out, ", ns {}..{}", r.start().nanos(), r.end().nanos())?,
        }
        if f.trace.is_some() {
            write!(out, ", one trace")?;
        }
        if let Some(ids) = &f.ids {
            write!(out, ", {} ids", ids.len())?;
        }
        for m in &f.matchers {
            write!(out, ", {m}")?;
        }
        for p in f.filter.iter().flat_map(|f| &f.predicates) {
            write!(out, ", where {p}")?;
        }
        if f.counted {
            write!(out, ", counted")?;
        }
        if f.order != ScanOrder::Commit {
            write!(out, ", {:?}", f.order)?;
        }
        if let Some(n) = f.limit {
            write!(out, ", first {n}")?;
        }
        Ok(())
    }
}

impl ExecutionPlan for FragmentExec {
    fn name(&self) -> &str {
        "FragmentExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for p in self.fragment.filter.iter().flat_map(|f| &f.predicates) {
            if f(p)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let state = State::New(self.fragment.clone(), self.door.clone());
        let batches = stream::try_unfold(state, |state| async move {
            let mut running = match state {
                State::New(fragment, door) => match open(fragment, &door).await.map_err(external)? {
                    Some(running) => running,
                    None => return Ok(None),
                },
                State::Running(running) => running,
            };
            match running.next().await.map_err(external)? {
                Some(batch) => Ok(Some((batch, State::Running(running)))),
                None => Ok(None),
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }
}

fn external(e: ScanError) -> DataFusionError {
    DataFusionError::External(Box::new(e))
}

enum State {
    New(Arc<Fragment>, Door),
    Running(Running),
}

struct Running {
    fragment: Arc<Fragment>,
    series: Option<Arc<SeriesMap>>,
    scan: ScanStream,
}

impl Running {
    async fn next(&mut self) -> Result<Option<RecordBatch>, ScanError> {
        let Some(batch) = self.scan.next().await.transpose()? else { return Ok(None) };
        let f = &self.fragment;
        let rows = f.relation.convert(&f.columns, &batch, self.series.as_deref())?;
        Ok(Some(if f.counted { counted(&rows)? } else { rows }))
    }
}

async fn open(fragment: Arc<Fragment>, door: &Door) -> Result<Option<Running>, ScanError> {
    let f = fragment.as_ref();
    let Some(range) = f.range else { return Ok(None) };
    let length = range.end().nanos().saturating_sub(range.start().nanos());
    door.limits.tenants.of(&door.tenant).check_range(length).map_err(ScanError::Invalid)?;
    let mut request = ScanRequest::new(door.tenant.clone(), f.relation.table, range);
    let mut series = None;
    if f.relation.with_series {
        let mut found = door.store.series(&door.tenant, &f.matchers, range).await?;
        if let Some(ids) = &f.ids {
            found.retain(|s| ids.contains(&s.id));
        }
        let series_max = SQL_SERIES_MAX.min(door.limits.series_of(&door.tenant));
        if found.len() > series_max {
            return Err(ScanError::Invalid(format!(
                "the query reads {} series, more than the limit of {series_max} series; name a metric or a time range",
                found.len()
            )));
        }
        let map = SeriesMap::new(found);
        request.selector = Selector::Ids(map.ids());
        series = Some(Arc::new(map));
    } else if let Some(trace) = f.trace {
        request.selector = Selector::Trace(trace);
    } else if let Some(ids) = &f.ids {
        request.selector = Selector::Ids(ids.clone().into());
    } else if !f.matchers.is_empty() {
        request.selector = Selector::Labels(f.matchers.clone());
    }
    request.columns = Some(f.relation.stored_of(&f.columns).into_iter().map(str::to_owned).collect());
    if let Some(filter) = &f.filter {
        request.filter = Some(Arc::new(RowTest {
            fragment: fragment.clone(),
            stored: f.relation.stored_of(&filter.columns),
            series: series.clone(),
        }));
    }
    let request = request.order(f.order, f.limit);
    let scan = door.store.scan(request).await?;
    door.costs.lock().push(scan.stats().clone());
    Ok(Some(Running { fragment, series, scan }))
}

/// A fragment's filter, inside its scan.
struct RowTest {
    fragment: Arc<Fragment>,
    stored: Vec<&'static str>,
    series: Option<Arc<SeriesMap>>,
}

impl RowFilter for RowTest {
    fn columns(&self) -> &[&'static str] {
        &self.stored
    }

    fn keep(&self, batch: &RecordBatch) -> Result<BooleanArray, ScanError> {
        let Some(filter) = &self.fragment.filter else {
            return Ok(BooleanArray::from(vec![true; batch.num_rows()]));
        };
        let rows = self.fragment.relation.convert(&filter.columns, batch, self.series.as_deref())?;
        let mut kept: Option<BooleanArray> = None;
        for predicate in &filter.predicates {
            let tested = predicate
                .evaluate(&rows)
                .and_then(|v| v.into_array(rows.num_rows()))
                .map_err(|e| ScanError::Invalid(e.strip_backtrace()))?;
            let tested =
                tested.as_boolean_opt().ok_or_else(|| ScanError::Invalid(format!("{predicate} is no condition")))?;
            let both = match kept {
                None => tested.clone(),
                Some(before) => and_kleene(&before, tested)?,
            };
            if both.true_count() == 0 {
                return Ok(BooleanArray::from(vec![false; rows.num_rows()]));
            }
            kept = Some(both);
        }
        Ok(kept.unwrap_or_else(|| BooleanArray::from(vec![true; rows.num_rows()])))
    }
}
