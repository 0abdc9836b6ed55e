//! The tree of a PromQL expression. Every node knows its place in the text.

use storage::model::Matcher;

use super::functions::Function;
use crate::syntax::Span;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    Scalar,
    Vector,
    Matrix,
    String,
}

impl ValueType {
    /// As Prometheus names types in messages.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::Scalar => "scalar",
            ValueType::Vector => "instant vector",
            ValueType::Matrix => "range vector",
            ValueType::String => "string",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    pub kind: ExprKind,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    Number(f64),
    String(String),
    Paren(Box<Expr>),
    /// `+x` or `-x`.
    Unary {
        minus: bool,
        operand: Box<Expr>,
    },
    Binary(Box<Binary>),
    Aggregate(Box<Aggregate>),
    Call {
        function: &'static Function,
        args: Vec<Expr>,
    },
    Selector(Selector),
    /// `selector[range]`.
    Range {
        selector: Selector,
        range: Duration,
    },
    Subquery(Box<Subquery>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
    Atan2,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    TrimUpper,
    TrimLower,
    And,
    Or,
    Unless,
}

impl BinaryOp {
    pub fn symbol(self) -> &'static str {
        match self {
            BinaryOp::Add => "+",
            BinaryOp::Sub => "-",
            BinaryOp::Mul => "*",
            BinaryOp::Div => "/",
            BinaryOp::Mod => "%",
            BinaryOp::Pow => "^",
            BinaryOp::Atan2 => "atan2",
            BinaryOp::Eq => "==",
            BinaryOp::Ne => "!=",
            BinaryOp::Lt => "<",
            BinaryOp::Le => "<=",
            BinaryOp::Gt => ">",
            BinaryOp::Ge => ">=",
            BinaryOp::TrimUpper => "</",
            BinaryOp::TrimLower => ">/",
            BinaryOp::And => "and",
            BinaryOp::Or => "or",
            BinaryOp::Unless => "unless",
        }
    }

    pub fn is_comparison(self) -> bool {
        use BinaryOp::*;
        matches!(self, Eq | Ne | Lt | Le | Gt | Ge)
    }

    pub fn is_set(self) -> bool {
        matches!(self, BinaryOp::And | BinaryOp::Or | BinaryOp::Unless)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Binary {
    pub op: BinaryOp,
    pub left: Expr,
    pub right: Expr,
    /// `bool`: a comparison answers 0 or 1 instead of filtering.
    pub returns_bool: bool,
    pub matching: Matching,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Cardinality {
    #[default]
    OneToOne,
    /// `group_left`.
    ManyToOne,
    /// `group_right`.
    OneToMany,
    /// Set operators.
    ManyToMany,
}

#[derive(Clone, Debug, PartialEq, Default)]
pub struct Matching {
    pub cardinality: Cardinality,
    /// Whether `on` (or `ignoring`) was written.
    pub explicit: bool,
    /// `labels` are those to match on; otherwise those to ignore.
    pub on: bool,
    pub labels: Vec<String>,
    /// Labels copied from the "one" side.
    pub include: Vec<String>,
    /// Value of a missing left or right element.
    pub fill: (Option<f64>, Option<f64>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AggregateOp {
    Sum,
    Avg,
    Count,
    Min,
    Max,
    Group,
    Stddev,
    Stdvar,
    Topk,
    Bottomk,
    CountValues,
    Quantile,
    Limitk,
    LimitRatio,
}

impl AggregateOp {
    pub const ALL: [AggregateOp; 14] = [
        AggregateOp::Sum,
        AggregateOp::Avg,
        AggregateOp::Count,
        AggregateOp::Min,
        AggregateOp::Max,
        AggregateOp::Group,
        AggregateOp::Stddev,
        AggregateOp::Stdvar,
        AggregateOp::Topk,
        AggregateOp::Bottomk,
        AggregateOp::CountValues,
        AggregateOp::Quantile,
        AggregateOp::Limitk,
        AggregateOp::LimitRatio,
    ];

    pub fn name(self) -> &'static str {
        match self {
            AggregateOp::Sum => "sum",
            AggregateOp::Avg => "avg",
            AggregateOp::Count => "count",
            AggregateOp::Min => "min",
            AggregateOp::Max => "max",
            AggregateOp::Group => "group",
            AggregateOp::Stddev => "stddev",
            AggregateOp::Stdvar => "stdvar",
            AggregateOp::Topk => "topk",
            AggregateOp::Bottomk => "bottomk",
            AggregateOp::CountValues => "count_values",
            AggregateOp::Quantile => "quantile",
            AggregateOp::Limitk => "limitk",
            AggregateOp::LimitRatio => "limit_ratio",
        }
    }

    /// Type of the argument before the vector, if there is one.
    pub fn parameter(self) -> Option<ValueType> {
        use AggregateOp::*;
        match self {
            Topk | Bottomk | Quantile | Limitk | LimitRatio => Some(ValueType::Scalar),
            CountValues => Some(ValueType::String),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Aggregate {
    pub op: AggregateOp,
    pub parameter: Option<Expr>,
    pub operand: Expr,
    pub without: bool,
    pub grouping: Vec<String>,
}

/// `@`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum At {
    Millis(i64),
    Start,
    End,
}

/// Range modifiers that change which samples a range function sees at the edges of its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Edges {
    #[default]
    Plain,
    Anchored,
    Smoothed,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Selector {
    /// Number of the selector in its query, in order of appearance.
    pub id: usize,
    /// The metric name where it was written as a name, also among `matchers`.
    pub name: Option<String>,
    pub matchers: Vec<Matcher>,
    pub offset: Option<Duration>,
    pub at: Option<At>,
    pub edges: Edges,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Subquery {
    pub expr: Expr,
    pub range: Duration,
    pub step: Option<Duration>,
    pub offset: Option<Duration>,
    pub at: Option<At>,
}

/// A duration: fixed, or computed when the query's step and range are known.
#[derive(Clone, Debug, PartialEq)]
pub struct Duration {
    pub kind: DurationKind,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub enum DurationKind {
    Seconds(f64),
    Step,
    Range,
    Negate(Box<Duration>),
    /// Arithmetic operators only.
    Binary(BinaryOp, Box<Duration>, Box<Duration>),
    Least(Box<Duration>, Box<Duration>),
    Greatest(Box<Duration>, Box<Duration>),
}

impl Expr {
    pub fn value_type(&self) -> ValueType {
        match &self.kind {
            ExprKind::Number(_) => ValueType::Scalar,
            ExprKind::String(_) => ValueType::String,
            ExprKind::Paren(e) => e.value_type(),
            ExprKind::Unary { operand, .. } => operand.value_type(),
            ExprKind::Binary(b) => {
                if b.left.value_type() == ValueType::Scalar && b.right.value_type() == ValueType::Scalar {
                    ValueType::Scalar
                } else {
                    ValueType::Vector
                }
            }
            ExprKind::Aggregate(_) | ExprKind::Selector(_) => ValueType::Vector,
            ExprKind::Call { function, .. } => function.returns,
            ExprKind::Range { .. } | ExprKind::Subquery(_) => ValueType::Matrix,
        }
    }

    /// The expression without parentheses around it.
    pub fn inner(&self) -> &Expr {
        let mut e = self;
        while let ExprKind::Paren(inner) = &e.kind {
            e = inner;
        }
        e
    }

    /// Calls `visit` on this node and all below, parents first.
    pub fn walk<'a>(&'a self, visit: &mut dyn FnMut(&'a Expr)) {
        visit(self);
        match &self.kind {
            ExprKind::Paren(e) | ExprKind::Unary { operand: e, .. } => e.walk(visit),
            ExprKind::Binary(b) => {
                b.left.walk(visit);
                b.right.walk(visit);
            }
            ExprKind::Aggregate(a) => {
                if let Some(p) = &a.parameter {
                    p.walk(visit);
                }
                a.operand.walk(visit);
            }
            ExprKind::Call { args, .. } => args.iter().for_each(|a| a.walk(visit)),
            ExprKind::Subquery(s) => s.expr.walk(visit),
            ExprKind::Number(_) | ExprKind::String(_) | ExprKind::Selector(_) | ExprKind::Range { .. } => {}
        }
    }
}
