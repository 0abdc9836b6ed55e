//! The one door to stored rows: what is asked ([`ScanRequest`]), what comes back ([`ScanStream`]), what it cost
//! ([`ScanStats`]). For samples of many series there is a quicker one ([`SampleScan`]).

pub(crate) mod groups;
pub mod request;
pub mod samples;
pub mod select;
pub(crate) mod stream;
pub mod tail;

pub use request::{RowFilter, ScanOrder, ScanRequest, ScanStats, ScanStream, Selector};
pub use samples::{SampleRequest, SampleScan, StoredSamples};
pub use tail::{Mark, Tail};
