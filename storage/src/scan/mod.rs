//! The one door to stored rows: what is asked ([`ScanRequest`]), what comes back ([`ScanStream`]), what it cost
//! ([`ScanStats`]).

pub mod request;
pub mod select;
pub(crate) mod stream;
pub mod tail;

pub use request::{RowFilter, ScanOrder, ScanRequest, ScanStats, ScanStream, Selector};
pub use tail::{Mark, Tail};
