//! Wire bytes to batches and back.
