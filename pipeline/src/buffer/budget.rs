//! Bytes in flight, bounded per input and for the whole process. A batch takes its permit when it enters the pipeline
//! and keeps it to its last ack, so a stuck sink makes its sources wait and the inner queues can never deadlock on bytes.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::component::DeliveryError;

/// Unit of the byte budget, so that it fits a semaphore's 32-bit permits.
const UNIT_BYTES: usize = 1024;

/// What one input may hold in flight, alone and together with the other inputs of the process. Clones share it.
#[derive(Clone)]
pub struct Budget {
    own: Pool,
    process: Option<Pool>,
}

#[derive(Clone)]
struct Pool {
    semaphore: Arc<Semaphore>,
    units: usize,
}

/// Bytes of the budget, given back on drop.
pub struct Permit {
    _own: OwnedSemaphorePermit,
    _process: Option<OwnedSemaphorePermit>,
}

impl Pool {
    fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT_BYTES).clamp(1, u32::MAX as usize >> 4);
        Pool { semaphore: Arc::new(Semaphore::new(units)), units }
    }

    /// A batch larger than the whole pool takes all of it: it passes alone rather than never.
    async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, DeliveryError> {
        let units = (bytes / UNIT_BYTES).clamp(1, self.units);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        self.semaphore.clone().acquire_many_owned(units).await.map_err(|_| DeliveryError::Stopping)
    }
}

impl Budget {
    pub fn new(bytes: usize) -> Self {
        Budget { own: Pool::new(bytes), process: None }
    }

    /// An input's own budget of `bytes` inside this one.
    pub fn input(&self, bytes: usize) -> Self {
        Budget { own: Pool::new(bytes), process: Some(self.own.clone()) }
    }

    /// Waits until `bytes` fit.
    pub async fn take(&self, bytes: usize) -> Result<Permit, DeliveryError> {
        // Own share first: an input that waits for its own acks holds nothing of the others' room.
        let own = self.own.take(bytes).await?;
        let process = match &self.process {
            Some(p) => Some(p.take(bytes).await?),
            None => None,
        };
        Ok(Permit { _own: own, _process: process })
    }

    /// Refuses from now on whoever asks or waits.
    pub fn close(&self) {
        self.own.semaphore.close();
    }

    /// Bytes in flight, to the unit.
    pub fn used_bytes(&self) -> usize {
        (self.own.units - self.own.semaphore.available_permits().min(self.own.units)) * UNIT_BYTES
    }
}
