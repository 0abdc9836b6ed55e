//! One table of SQL as DataFusion sees it: it takes every filter, and reads through a [`Fragment`].

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{
        DFSchema, Result,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::ExecutionPlan,
};
use storage::{ScanOrder, model::TimeRange};

use super::{columns::Relation, pushdown::Hints};
use crate::fragment::{Door, Filter, Fragment, FragmentExec};

#[derive(Clone, Debug)]
pub struct SqlTable {
    pub relation: &'static Relation,
    pub door: Door,
    /// What the request allows.
    pub within: TimeRange,
    /// Set by [`super::rewrite`].
    pub counted: Option<Counted>,
    /// Set by [`super::rewrite`]: only the first rows in time matter.
    pub first: Option<(ScanOrder, usize)>,
    /// Use the time range and selection that filters give; off where plans with and without are compared.
    pub narrows: bool,
}

/// The table stands for distinct rows of some of its columns and their counts.
#[derive(Clone, Debug)]
pub struct Counted {
    pub columns: Vec<usize>,
    /// Of the rows that are counted, over all columns of the relation.
    pub filters: Vec<Expr>,
}

impl SqlTable {
    /// Filters over single rows that need nothing but the row.
    fn can_test(filter: &Expr) -> bool {
        let mut plain = !filter.is_volatile();
        let walked = filter.apply(|e| {
            plain &= !matches!(
                e,
                Expr::OuterReferenceColumn(..)
                    | Expr::ScalarSubquery(_)
                    | Expr::InSubquery(_)
                    | Expr::Exists(_)
                    | Expr::Placeholder(_)
            );
            Ok(if plain { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
        });
        plain && walked.is_ok()
    }

    fn fragment(&self, state: &dyn Session, filters: &[Expr], columns: Vec<usize>) -> Result<Fragment> {
        let taken = if self.narrows { filters } else { &[] };
        let mut hints = Hints::new(self.relation, taken, self.within);
        if !self.narrows {
            hints.rest = filters.to_vec();
        }
        Ok(Fragment {
            relation: self.relation,
            range: hints.range(),
            filter: self.filter(state, &hints.rest)?,
            ids: hints.ids,
            trace: hints.trace,
            matchers: hints.matchers,
            columns,
            counted: self.counted.is_some(),
            order: ScanOrder::Commit,
            limit: None,
        })
    }

    fn filter(&self, state: &dyn Session, rest: &[Expr]) -> Result<Option<Filter>> {
        if rest.is_empty() {
            return Ok(None);
        }
        let mut columns = Vec::new();
        for name in rest.iter().flat_map(|e| e.column_refs()).map(|c| &c.name) {
            let i = self.relation.schema.index_of(name)?;
            if !columns.contains(&i) {
                columns.push(i);
            }
        }
        let schema = DFSchema::try_from(self.relation.schema_of(&columns, false))?;
        let predicates: Result<Vec<_>> =
            rest.iter().map(|e| state.create_physical_expr(e.clone(), &schema)).collect();
        Ok(Some(Filter { columns, predicates: predicates? }))
    }
}

#[async_trait]
impl TableProvider for SqlTable {
    fn schema(&self) -> SchemaRef {
        match &self.counted {
            Some(c) => self.relation.schema_of(&c.columns, true),
            None => self.relation.schema.clone(),
        }
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let can = |f: &&Expr| match self.counted.is_none() && Self::can_test(f) {
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(can).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(c) = &self.counted {
            let fragment = self.fragment(state, &c.filters, c.columns.clone())?;
            let plan: Arc<dyn ExecutionPlan> = Arc::new(FragmentExec::new(fragment, self.door.clone()));
            return match projection {
                None => Ok(plan),
                Some(some) => project(plan, some),
            };
        }
        let columns = projection.cloned().unwrap_or_else(|| (0..self.relation.columns.len()).collect());
        let mut fragment = self.fragment(state, filters, columns)?;
        fragment.limit = limit;
        if let Some((order, rows)) = self.first {
            fragment.order = order;
            fragment.limit = Some(limit.map_or(rows, |l| l.min(rows)));
        }
        Ok(Arc::new(FragmentExec::new(fragment, self.door.clone())))
    }
}

/// Some columns of `plan`, by place.
fn project(plan: Arc<dyn ExecutionPlan>, columns: &[usize]) -> Result<Arc<dyn ExecutionPlan>> {
    use datafusion::physical_plan::{
        expressions::Column,
        projection::{ProjectionExec, ProjectionExpr},
    };
    let schema = plan.schema();
    if columns.iter().copied().eq(0..schema.fields().len()) {
        return Ok(plan);
    }
    let exprs = columns.iter().map(|i| {
        let name = schema.field(*i).name();
        ProjectionExpr::new(Arc::new(Column::new(name, *i)), name.clone())
    });
    Ok(Arc::new(ProjectionExec::try_new(exprs.collect::<Vec<_>>(), plan)?))
}
