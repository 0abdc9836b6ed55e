//! Precedence climbing over binary operators.

use super::SyntaxError;

/// How tightly an operator holds its operands: a higher level binds tighter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    pub level: u8,
    pub right: bool,
}

impl Binding {
    pub const fn left(level: u8) -> Self {
        Binding { level, right: false }
    }

    pub const fn right(level: u8) -> Self {
        Binding { level, right: true }
    }
}

/// What a language gives the climber.
pub trait Climb {
    type Expr;
    /// The operator with its modifiers.
    type Op;

    /// One operand with its prefixes and postfixes. A prefix that binds looser than some operator calls [`climb`] with
    /// that operator's level.
    fn operand(&mut self) -> Result<Self::Expr, SyntaxError>;
    /// The binding of the operator that comes next, without taking it; `None` when no operator does.
    fn binding(&self) -> Option<Binding>;
    /// Takes the operator [`Climb::binding`] told of, and its modifiers.
    fn operator(&mut self) -> Result<Self::Op, SyntaxError>;
    fn join(&mut self, op: Self::Op, left: Self::Expr, right: Self::Expr) -> Result<Self::Expr, SyntaxError>;
    /// Counts one level of the tree, with an error beyond the limit: [`super::Cursor::enter`].
    fn enter(&mut self) -> Result<(), SyntaxError>;
    /// Undoes `levels` calls of [`Climb::enter`].
    fn leave(&mut self, levels: usize);
}

/// Parses operands joined by operators of at least `level`.
///
/// A chain `a + b + c ...` makes a tree as high as it is long, so each link counts as one level of nesting.
pub fn climb<P: Climb + ?Sized>(parser: &mut P, level: u8) -> Result<P::Expr, SyntaxError> {
    parser.enter()?;
    let mut levels = 1;
    let mut left = parser.operand()?;
    while let Some(binding) = parser.binding() {
        if binding.level < level {
            break;
        }
        parser.enter()?;
        levels += 1;
        let op = parser.operator()?;
        let right = climb(parser, if binding.right { binding.level } else { binding.level + 1 })?;
        left = parser.join(op, left, right)?;
    }
    parser.leave(levels);
    Ok(left)
}
