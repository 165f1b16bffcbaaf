//! Ranks: the processes that train one model together, and their communication.
//!
//! `mpirun` or `srun` starts them and identifies each by environment variables. The transport is MPI, behind the
//! feature `mpi`. If a connection breaks or a process dies, MPI ends all of them.

#[cfg(feature = "mpi")]
mod mpi;

use std::fmt::Debug;

use crate::error::{Error, Result};

/// Communication between processes that train together.
///
/// Every rank must call the collective operations, [`Reduce::sum`] and [`Reduce::broadcast`], in the same order and
/// with slices of the same length. A transport failure ends the process, and with it all others.
pub trait Reduce: Debug {
    /// Return the number of this process, from 0.
    fn rank(&self) -> usize;

    /// Return the number of processes.
    fn size(&self) -> usize;

    /// Replace `values` by their sums over all ranks, computed in f32.
    fn sum(&self, values: &mut [f32]);

    /// Replace `values` by those of rank 0.
    fn broadcast(&self, values: &mut [f32]);

    /// Send a message to another rank. Messages between two ranks arrive in order.
    fn send(&self, to: usize, message: &[u8]);

    /// Whether a message from another rank is available.
    fn pending(&self, from: usize) -> bool;

    /// Wait for a message from another rank and returns it.
    fn receive(&self, from: usize) -> Vec<u8>;
}

/// A single process: a sum is the value itself, and there is no other rank.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Reduce for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&self, _values: &mut [f32]) {}

    fn broadcast(&self, _values: &mut [f32]) {}

    fn send(&self, to: usize, _message: &[u8]) {
        unreachable!("there is no rank {to}");
    }

    fn pending(&self, _from: usize) -> bool {
        false
    }

    fn receive(&self, from: usize) -> Vec<u8> {
        unreachable!("there is no rank {from}");
    }
}

/// Number of a process among those that a launcher has started, and on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankInfo {
    /// Number of the process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// Number of the process among those on its host.
    pub local_rank: usize,
    /// Number of processes on its host, if the launcher reports it.
    pub local_size: Option<usize>,
    /// Whether the launcher has bound the process to its own processors.
    pub bound: bool,
}

impl RankInfo {
    /// Read the numbers from the launcher's environment variables; `None` for a process that was started alone.
    pub fn here() -> Option<Self> {
        Self::of(|name| std::env::var(name).ok())
    }

    /// Read rank, size, rank on the host, and processes on the host, as set by Open MPI, by MPICH and its derivatives,
    /// or by SLURM. SLURM sets the variables of a step for what `srun` starts, but not for a batch script.
    fn of(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        const LAUNCHERS: [[&str; 4]; 3] = [
            [
                "OMPI_COMM_WORLD_RANK",
                "OMPI_COMM_WORLD_SIZE",
                "OMPI_COMM_WORLD_LOCAL_RANK",
                "OMPI_COMM_WORLD_LOCAL_SIZE",
            ],
            ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
            ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"],
        ];
        let number = |name: &str| -> Option<usize> {
            // SLURM writes "4(x2),3" for 4 on each of two hosts and 3 on another.
            let text = variable(name)?;
            text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        LAUNCHERS.iter().find_map(|[rank, size, local_rank, local_size]| {
            let (rank, size) = (number(rank)?, number(size)?);
            let local_rank = number(local_rank).or_else(|| number("SLURM_LOCALID")).unwrap_or(0);
            let bound = ["OMPI_MCA_orte_bound_at_launch", "SLURM_CPUS_PER_TASK"];
            let bound = bound.iter().any(|name| variable(name).is_some());
            Some(Self { rank, size, local_rank, local_size: number(local_size), bound })
        })
    }

    /// Return the number of CPU threads for a process whose host has `cores` cores for all of its processes.
    fn share(&self, cores: usize) -> usize {
        if self.bound { cores } else { (cores / self.local_size.unwrap_or(1)).max(1) }
    }
}

/// Return the number of threads for this process if it trains together with others; `None` if it has all cores, and if
/// `RAYON_NUM_THREADS` is set.
pub fn threads() -> Option<usize> {
    if std::env::var_os("RAYON_NUM_THREADS").is_some() {
        return None;
    }
    let info = RankInfo::here().filter(|info| info.size > 1)?;
    std::thread::available_parallelism().ok().map(|cores| info.share(cores.get()))
}

/// Return the device of this process, given the `name` common to all: among several, the GPU with the local rank.
pub(crate) fn own_device(name: &str) -> String {
    match RankInfo::here().filter(|info| info.size > 1) {
        Some(info) if matches!(name, "cuda" | "rocm") => format!("{name}:{}", info.local_rank),
        _ => name.to_string(),
    }
}

/// Join the processes that a launcher has started together with this one; [`Alone`] if there are none.
///
/// Must be called once, by the thread that will use the result.
///
/// # Errors
/// If there are several processes, and the binary was built without MPI or with another MPI than the launcher's.
pub fn join() -> Result<Box<dyn Reduce>> {
    match RankInfo::here() {
        Some(info) if info.size > 1 => together(info),
        _ => Ok(Box::new(Alone)),
    }
}

#[cfg(feature = "mpi")]
fn together(info: RankInfo) -> Result<Box<dyn Reduce>> {
    Ok(Box::new(mpi::World::join(info)?))
}

#[cfg(not(feature = "mpi"))]
fn together(info: RankInfo) -> Result<Box<dyn Reduce>> {
    Err(Error::Invalid(format!(
        "started as {} processes by mpirun or srun, but this binary cannot join them: build it with `cargo build \
         --release --features mpi`, or start it as one process without mpirun or srun",
        info.size
    )))
}

/// Reject a start as several processes, for commands that run in one process.
///
/// # Errors
/// When a launcher has started several processes.
pub fn refuse() -> Result<()> {
    match RankInfo::here() {
        Some(info) if info.size > 1 => Err(Error::Invalid(format!(
            "started as {} processes by mpirun or srun, but only `train` and `bench scale` support several processes: \
             start this command without mpirun or srun",
            info.size
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(variables: &[(&str, &str)]) -> Option<RankInfo> {
        RankInfo::of(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn launchers_tell_the_place() {
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "5"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
            // From the batch job that mpirun runs in.
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ];
        let expected = RankInfo { rank: 5, size: 8, local_rank: 1, local_size: Some(4), bound: false };
        assert_eq!(info(&open_mpi), Some(expected));
        let slurm = [
            ("SLURM_PROCID", "6"),
            ("SLURM_STEP_NUM_TASKS", "11"),
            ("SLURM_LOCALID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2),3"),
        ];
        let expected = RankInfo { rank: 6, size: 11, local_rank: 2, local_size: Some(4), bound: false };
        assert_eq!(info(&slurm), Some(expected));
        let mpich = [("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("SLURM_LOCALID", "1")];
        let expected = RankInfo { rank: 1, size: 2, local_rank: 1, local_size: None, bound: false };
        assert_eq!(info(&mpich), Some(expected));
    }

    /// A batch script, which srun did not start, has the variables of the whole job.
    #[test]
    fn a_batch_script_is_alone() {
        assert_eq!(info(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "0")]), None);
        assert_eq!(info(&[]), None);
    }

    #[test]
    fn cores_are_shared_unless_the_launcher_has_dealt_them() {
        let shared = RankInfo { rank: 0, size: 4, local_rank: 0, local_size: Some(4), bound: false };
        assert_eq!([16, 3].map(|cores| shared.share(cores)), [4, 1]);
        assert_eq!(RankInfo { bound: true, ..shared }.share(4), 4);
    }
}
