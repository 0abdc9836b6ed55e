//! LogQL: parsed whole, evaluated over [`storage::Store::scan`].
//!
//! **For** turning a query text, a range and limits into streams, a matrix, a vector or a scalar. **Not for** HTTP
//! (`http::loki`) or storage.
//!
//! # How a query runs
//! * Line filters and plain label filters that stand before any stage which changes the line or the labels become a
//!   [`storage::RowFilter`]: they run where the rows are, on columns, label filters once a combination of dictionary keys.
//! * A log query asks for its winners only (time order and limit go into the scan).
//! * A metric query reads time, and of the labels only what its grouping needs; a row is then two additions into an array
//!   of steps.
//! * What the grammar knows and the evaluator does not is refused by name, never answered wrongly.

pub mod ast;
mod attrs;
mod deletion;
mod entry;
mod error;
mod eval;
mod format;
mod level;
mod lexer;
pub mod limits;
mod logs;
mod parser;
mod plan;
mod print;
mod range;
mod regex;
mod stage;
mod vector;

pub use deletion::deletion;
pub use entry::{Kind, Label};
pub use error::QueryError;
pub use eval::{Context, Value, instant, range_query};
pub use lexer::parse_duration;
pub use logs::{Direction, LogEntry, LogRequest, log_query};
pub use parser::{check_matchers, parse, parse_matchers, parse_matchers_within};
pub use print::pretty;
pub use range::Steps;
pub use vector::{Sample, Series};

/// Bytes of each row as Loki counts a chunk: the line, eight bytes for each metadata pair (`detected_level` too), and each
/// distinct value once, here once a batch. The batch has the columns `body` and `attrs`.
pub fn row_bytes(batch: &arrow::array::RecordBatch) -> Result<Vec<usize>, storage::ScanError> {
    const PAIR_BYTES: usize = 8;
    let need = entry::Need::All;
    let mut entries = entry::Entries::new(batch, &need, &["attrs"])?;
    let bodies = plan::bodies(batch)?;
    let mut seen = 0;
    let mut out = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let combination = entries.combination(row) as usize;
        let labels = &entries.combinations[combination].labels;
        let mut bytes = bodies.value(row).len() + PAIR_BYTES * (labels.len() + 1);
        if combination >= seen {
            seen = combination + 1;
            bytes += labels.iter().map(|l| l.value.len()).sum::<usize>();
        }
        out.push(bytes);
    }
    Ok(out)
}
