//! MPI transport between ranks.

use std::fmt;
use std::time::Duration;

use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::topology::{Process, SimpleCommunicator};
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};
use mpi::{Rank, Threading};

use super::{RankInfo, Reduce};
use crate::error::{Error, Result};

/// Maximum numbers or bytes per MPI call, because MPI counts in i32; longer slices are split.
const PART: usize = 1 << 28;
/// Interval between checks for a message. A rank that polls without a pause would occupy a core.
const POLL_INTERVAL: Duration = Duration::from_micros(200);
/// Error code with which a panicking rank aborts the others.
const PANICKED: i32 = 101;

/// All processes of an MPI job. Dropping it finalises MPI, which waits for the others to do the same.
pub(super) struct World {
    world: SimpleCommunicator,
    /// Finalised last.
    _universe: Universe,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}

impl World {
    pub(super) fn join(info: RankInfo) -> Result<Self> {
        let (universe, threading) =
            mpi::initialize_with_threading(Threading::Funneled).expect("a process joins the others once");
        let joined = Self { world: universe.world(), _universe: universe };
        if joined.size() != info.size {
            let version = mpi::environment::library_version().unwrap_or_default();
            return Err(Error::Invalid(format!(
                "started as {} processes, but the MPI of this binary ({}) finds {} processes: start it with the mpirun \
                 of that MPI, or under SLURM with `srun --mpi=pmix` (`srun --mpi=list` shows the available types)",
                info.size,
                version.split(',').next().unwrap_or_default(),
                joined.size()
            )));
        }
        if threading < Threading::Funneled {
            return Err(Error::Invalid(
                "this MPI library does not support threads, which the computation needs: use an MPI built with thread \
                 support"
                    .to_string(),
            ));
        }
        Ok(joined)
    }

    fn process(&self, rank: usize) -> Process<'_> {
        self.world.process_at_rank(rank as Rank)
    }
}

impl Reduce for World {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn sum(&self, values: &mut [f32]) {
        for part in values.chunks_mut(PART) {
            let own = part.to_vec();
            self.world.all_reduce_into(&own[..], part, SystemOperation::sum());
        }
    }

    fn broadcast(&self, values: &mut [f32]) {
        values.chunks_mut(PART).for_each(|part| self.process(0).broadcast_into(part));
    }

    fn send(&self, to: usize, message: &[u8]) {
        let to = self.process(to);
        to.send(&(message.len() as u64).to_le_bytes()[..]);
        message.chunks(PART).for_each(|part| to.send(part));
    }

    fn pending(&self, from: usize) -> bool {
        self.process(from).immediate_probe().is_some()
    }

    fn receive(&self, from: usize) -> Vec<u8> {
        while !self.pending(from) {
            std::thread::sleep(POLL_INTERVAL);
        }
        let from = self.process(from);
        let mut length = [0; 8];
        from.receive_into(&mut length[..]);
        let mut message = vec![0; u64::from_le_bytes(length) as usize];
        message.chunks_mut(PART).for_each(|part| {
            from.receive_into(part);
        });
        message
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Without the abort the others would wait for this rank forever.
        if std::thread::panicking() {
            self.world.abort(PANICKED);
        }
    }
}
