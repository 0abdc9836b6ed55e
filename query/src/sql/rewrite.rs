//! Two exact rewrites of a plan, so that less than every row passes through it.
//!
//! - [`CountBesideScan`]: a count grouped by expressions over dictionary columns needs to see each distinct combination of
//!   their values in a batch once, with the number of its rows.
//! - [`FirstBesideScan`]: `ORDER BY ts LIMIT n` needs the scan's first `n` rows in time, which a scan finds without
//!   reading parts that are too late.

use std::{any::Any, collections::BTreeSet, sync::Arc};

use datafusion::{
    common::{Column, Result, TableReference, tree_node::Transformed},
    datasource::{provider_as_source, source_as_provider},
    functions::core::expr_fn::coalesce,
    functions_aggregate::sum::sum,
    logical_expr::{
        Aggregate, Expr, LogicalPlan, LogicalPlanBuilder, Projection, Sort, SubqueryAlias, TableScan,
        expr_rewriter::unnormalize_cols, lit,
    },
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};
use storage::{
    ScanOrder,
    model::{Table, schema::dict},
};

use super::{
    columns::ROWS,
    table::{Counted, SqlTable},
};
use crate::limits::SQL_FIRST_MAX;

#[derive(Debug)]
pub struct CountBesideScan;

impl OptimizerRule for CountBesideScan {
    fn name(&self) -> &str {
        "count_beside_scan"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if let LogicalPlan::Aggregate(aggregate) = &plan
            && let Some(counted) = count(aggregate)?
        {
            return Ok(Transformed::yes(counted));
        }
        Ok(Transformed::no(plan))
    }
}

fn count(aggregate: &Aggregate) -> Result<Option<LogicalPlan>> {
    if !aggregate.aggr_expr.iter().all(is_row_count) {
        return Ok(None);
    }
    let simple = |e: &Expr| !matches!(e, Expr::GroupingSet(_)) && !e.is_volatile() && !e.contains_scalar_subquery();
    if !aggregate.group_expr.iter().all(simple) {
        return Ok(None);
    }
    // Aliases over a scan, the outermost first.
    let mut aliases: Vec<TableReference> = Vec::new();
    let mut input = aggregate.input.as_ref();
    let scan = loop {
        match input {
            LogicalPlan::SubqueryAlias(a) => {
                aliases.push(a.alias.clone());
                input = a.input.as_ref();
            }
            LogicalPlan::TableScan(scan) => break scan,
            _ => return Ok(None),
        }
    };
    let Some(table) = plain_table(scan) else { return Ok(None) };
    let mut columns = BTreeSet::new();
    for name in aggregate.group_expr.iter().flat_map(|e| e.column_refs()).map(|c| &c.name) {
        let i = table.relation.schema.index_of(name)?;
        if table.relation.schema.field(i).data_type() != &dict() {
            return Ok(None);
        }
        columns.insert(i);
    }
    let filters = unnormalize_cols(scan.filters.iter().cloned());
    let counted = Counted { columns: columns.into_iter().collect(), filters };
    let source = provider_as_source(Arc::new(SqlTable { counted: Some(counted), ..table }));
    let mut plan = LogicalPlanBuilder::scan(scan.table_name.clone(), source, None)?;
    let outer = aliases.first().cloned().unwrap_or_else(|| scan.table_name.clone());
    for alias in aliases.into_iter().rev() {
        plan = plan.alias(alias)?;
    }
    let rows = Expr::Column(Column::new(Some(outer), ROWS));
    if aggregate.aggr_expr.is_empty() {
        return plan.aggregate(aggregate.group_expr.clone(), Vec::<Expr>::new())?.build().map(Some);
    }
    const SUM: &str = "__sum_of_rows";
    let plan = plan.aggregate(aggregate.group_expr.clone(), vec![sum(rows).alias(SUM)])?;
    let groups = aggregate.group_expr.len();
    let mut output: Vec<Expr> = plan.schema().columns().into_iter().take(groups).map(Expr::Column).collect();
    for field in aggregate.schema.fields().iter().skip(groups) {
        // Without any row there is no sum, but there is a count.
        let n = coalesce(vec![Expr::Column(Column::new_unqualified(SUM)), lit(0i64)]);
        output.push(n.alias(field.name()));
    }
    plan.project(output)?.build().map(Some)
}

/// `count(*)` or `count(1)`, of all rows.
fn is_row_count(e: &Expr) -> bool {
    match e {
        Expr::Alias(a) => is_row_count(&a.expr),
        Expr::AggregateFunction(f) => {
            let p = &f.params;
            let plain = f.func.name() == "count" && !p.distinct && p.filter.is_none() && p.order_by.is_empty();
            plain && matches!(p.args.as_slice(), [Expr::Literal(value, _)] if !value.is_null())
        }
        _ => false,
    }
}

/// The table of a scan that nothing has been done to.
fn plain_table(scan: &TableScan) -> Option<SqlTable> {
    let provider = source_as_provider(&scan.source).ok()?;
    let table = (provider.as_ref() as &dyn Any).downcast_ref::<SqlTable>()?;
    (scan.fetch.is_none() && table.counted.is_none() && table.first.is_none()).then(|| table.clone())
}

#[derive(Debug)]
pub struct FirstBesideScan;

impl OptimizerRule for FirstBesideScan {
    fn name(&self) -> &str {
        "first_beside_scan"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if let LogicalPlan::Sort(sort) = &plan
            && let (Some(rows), [by]) = (sort.fetch, sort.expr.as_slice())
            && rows <= SQL_FIRST_MAX
            && let Expr::Column(column) = &by.expr
        {
            let order = if by.asc { ScanOrder::TimeAscending } else { ScanOrder::TimeDescending };
            if let Some(input) = first(&sort.input, column, (order, rows))? {
                let sort = Sort { expr: sort.expr.clone(), input: Arc::new(input), fetch: sort.fetch };
                return Ok(Transformed::yes(LogicalPlan::Sort(sort)));
            }
        }
        Ok(Transformed::no(plan))
    }
}

/// `plan` over a scan of its first rows, where it is one scan in another form and `column` is its time.
fn first(plan: &LogicalPlan, column: &Column, first_rows: (ScanOrder, usize)) -> Result<Option<LogicalPlan>> {
    Ok(match plan {
        LogicalPlan::Projection(p) => {
            let mut e = &p.expr[p.schema.index_of_column(column)?];
            while let Expr::Alias(a) = e {
                e = &a.expr;
            }
            let Expr::Column(inner) = e else { return Ok(None) };
            match first(&p.input, inner, first_rows)? {
                Some(input) => Some(LogicalPlan::Projection(Projection::try_new(p.expr.clone(), Arc::new(input))?)),
                None => None,
            }
        }
        LogicalPlan::SubqueryAlias(a) => {
            let i = a.schema.index_of_column(column)?;
            let inner = a.input.schema().columns().swap_remove(i);
            match first(&a.input, &inner, first_rows)? {
                Some(input) => {
                    Some(LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(input), a.alias.clone())?))
                }
                None => None,
            }
        }
        LogicalPlan::TableScan(scan) => match plain_table(scan) {
            Some(table)
                if table.relation.table != Table::MetricSeries && matches!(column.name.as_str(), "ts" | "ts_ms") =>
            {
                let source = provider_as_source(Arc::new(SqlTable { first: Some(first_rows), ..table }));
                Some(LogicalPlan::TableScan(TableScan { source, ..scan.clone() }))
            }
            _ => None,
        },
        _ => None,
    })
}
