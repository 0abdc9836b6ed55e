//! What lies between two components: bounded queues, the byte budget, and the line back to the source.

pub mod ack;
pub mod budget;
pub mod disk;
pub mod memory;

pub use ack::Ack;
pub use budget::{Budget, Permit};
pub use memory::{Feed, Intake};
