//! The processes that train one model together: their places, and how they talk.
//!
//! `mpirun` or `srun` starts them; who is who is in variables that these set. The transport is MPI's, behind the feature
//! `mpi`. A connection that breaks, or a process that dies, ends all of them: MPI sees to that.

#[cfg(feature = "mpi")]
mod mpi;

use std::fmt::Debug;

use crate::error::{Error, Result};

/// What processes that train together can do with each other.
///
/// Every rank must call the collective ones, [`Reduce::sum`] and [`Reduce::broadcast`], in the same order and with lists of
/// the same length. A transport that fails ends the process, and with it all others.
pub trait Reduce: Debug {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;

    /// Processes in all.
    fn size(&self) -> usize;

    /// Replaces numbers by their sums over all ranks, formed in f32.
    fn sum(&self, values: &mut [f32]);

    /// Replaces numbers by those of rank 0.
    fn broadcast(&self, values: &mut [f32]);

    /// Sends a message to another rank. Messages between two ranks arrive in order.
    fn send(&self, to: usize, message: &[u8]);

    /// Whether a message of another rank is there.
    fn pending(&self, from: usize) -> bool;

    /// Waits for a message of another rank.
    fn receive(&self, from: usize) -> Vec<u8>;
}

/// One process by itself: sums are what they are, and there is nobody to talk to.
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

/// The place of a process among those that a launcher has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its number.
    pub rank: usize,
    /// Processes in all.
    pub size: usize,
    /// Its number among those of its host.
    pub local_rank: usize,
    /// Processes of its host, where the launcher tells.
    pub local_size: Option<usize>,
    /// Whether the launcher has given it processors of its own.
    pub bound: bool,
}

impl Place {
    /// The place that the launcher's variables tell; none for a process that was started alone.
    pub fn here() -> Option<Self> {
        Self::of(|name| std::env::var(name).ok())
    }

    /// Rank, size, rank on the host, and processes on the host: by Open MPI, by what MPICH and its kin have in common, and by
    /// SLURM, whose variables of a step are there for what `srun` starts and not for a batch script.
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

    /// Threads for a process on the CPU where its host has so many cores for all of its processes.
    fn share(&self, cores: usize) -> usize {
        if self.bound { cores } else { (cores / self.local_size.unwrap_or(1)).max(1) }
    }
}

/// Threads for this process, where it shares its host with others that train with it; none where it has all cores, and where
/// `RAYON_NUM_THREADS` says it.
pub fn threads() -> Option<usize> {
    if std::env::var_os("RAYON_NUM_THREADS").is_some() {
        return None;
    }
    let place = Place::here().filter(|place| place.size > 1)?;
    std::thread::available_parallelism().ok().map(|cores| place.share(cores.get()))
}

/// The device of a process by the name that all of them were given: of several cards the one of its place on the host.
pub(crate) fn own_device(name: &str) -> String {
    match Place::here().filter(|place| place.size > 1) {
        Some(place) if matches!(name, "cuda" | "rocm") => format!("{name}:{}", place.local_rank),
        _ => name.to_string(),
    }
}

/// Joins the processes that a launcher has started together with this one; [`Alone`] where there are none.
///
/// To be called once, by the thread that will use what it gives.
///
/// # Errors
/// When there are several, and the binary was built without MPI or its MPI is not the launcher's.
pub fn join() -> Result<Box<dyn Reduce>> {
    match Place::here() {
        Some(place) if place.size > 1 => together(place),
        _ => Ok(Box::new(Alone)),
    }
}

#[cfg(feature = "mpi")]
fn together(place: Place) -> Result<Box<dyn Reduce>> {
    Ok(Box::new(mpi::World::join(place)?))
}

#[cfg(not(feature = "mpi"))]
fn together(place: Place) -> Result<Box<dyn Reduce>> {
    Err(Error::Invalid(format!(
        "started as {} processes by mpirun or srun, but this binary cannot join them: build it with `cargo build --release \
         --features mpi`, or start it alone",
        place.size
    )))
}

/// Refuses to do in several processes what one process does.
///
/// # Errors
/// When a launcher has started several.
pub fn refuse() -> Result<()> {
    match Place::here() {
        Some(place) if place.size > 1 => Err(Error::Invalid(format!(
            "started as {} processes by mpirun or srun, but only `train` and `bench scale` work in several: start it alone",
            place.size
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Option<Place> {
        Place::of(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn launchers_tell_the_place() {
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "5"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
            // Of the batch job that mpirun runs in.
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ];
        let expected = Place { rank: 5, size: 8, local_rank: 1, local_size: Some(4), bound: false };
        assert_eq!(place(&open_mpi), Some(expected));
        let slurm = [
            ("SLURM_PROCID", "6"),
            ("SLURM_STEP_NUM_TASKS", "11"),
            ("SLURM_LOCALID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2),3"),
        ];
        let expected = Place { rank: 6, size: 11, local_rank: 2, local_size: Some(4), bound: false };
        assert_eq!(place(&slurm), Some(expected));
        let mpich = [("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("SLURM_LOCALID", "1")];
        let expected = Place { rank: 1, size: 2, local_rank: 1, local_size: None, bound: false };
        assert_eq!(place(&mpich), Some(expected));
    }

    /// A batch script, which srun did not start, has variables of the whole job.
    #[test]
    fn a_batch_script_is_alone() {
        assert_eq!(place(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "0")]), None);
        assert_eq!(place(&[]), None);
    }

    #[test]
    fn cores_are_shared_unless_the_launcher_has_dealt_them() {
        let shared = Place { rank: 0, size: 4, local_rank: 0, local_size: Some(4), bound: false };
        assert_eq!([16, 3].map(|cores| shared.share(cores)), [4, 1]);
        assert_eq!(Place { bound: true, ..shared }.share(4), 4);
    }
}
