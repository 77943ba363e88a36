//! A process among those `mpirun` started.
//!
//! One thread of its own makes all of MPI's calls, one after the other, so that gradients are summed while the others
//! still compute; the same order everywhere is what MPI asks for, and what makes the sums the same everywhere.

use std::ffi::c_int;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::{DistributedError, Place};

// Written in C next door.
unsafe extern "C" {
    fn tec_mpi_enter(rank: &mut c_int, size: &mut c_int, threads: &mut c_int) -> c_int;
    fn tec_mpi_sum_floats(values: *mut f32, count: c_int);
    fn tec_mpi_sum_doubles(values: *mut f64, count: c_int);
    fn tec_mpi_broadcast(bytes: *mut u8, count: c_int);
    fn tec_mpi_barrier();
    fn tec_mpi_leave();
    fn tec_mpi_abort(code: c_int);
}

/// Values in one call: the count has to be an `int`.
const CHUNK: usize = 1 << 28;

/// Values worth a message of their own (4 MiB).
pub(super) const MESSAGE: usize = 1 << 20;

/// The thread that speaks MPI.
pub(super) struct Process {
    commands: Sender<Command>,
    any_thread_may_abort: bool,
}

enum Command {
    SumFloats(Vec<f32>, Sender<Vec<f32>>),
    SumDoubles(Vec<f64>, Sender<Vec<f64>>),
    Broadcast(Vec<u8>, Sender<Vec<u8>>),
    Barrier(Sender<()>),
    Leave(Sender<()>),
}

impl Process {
    /// Enters MPI.
    pub(super) fn join(place: &Place) -> Result<Self, DistributedError> {
        let (commands, todo) = channel();
        let (entered, entry) = channel();
        let run = move || {
            let (mut rank, mut size, mut threads) = (0, 0, 0);
            // SAFETY: three integers to write to; a second entry is answered, not made.
            let again = unsafe { tec_mpi_enter(&mut rank, &mut size, &mut threads) };
            let seen = (again == 0).then_some((rank as usize, size as usize, threads == 1));
            if entered.send(seen).is_ok() && again == 0 {
                serve(&todo);
            }
        };
        std::thread::Builder::new()
            .name("mpi".into())
            .spawn(run)
            .map_err(|error| DistributedError::Engine { engine: "MPI", reason: error.to_string() })?;
        match receive(&entry)? {
            Some((rank, size, any_thread_may_abort)) if (rank, size) == (place.rank, place.size) => {
                Ok(Self { commands, any_thread_may_abort })
            }
            Some((rank, size, _)) => Err(DistributedError::Disagreement {
                seen: format!("rank {rank} of {size}"),
                told: format!("rank {} of {}", place.rank, place.size),
            }),
            None => {
                Err(DistributedError::Engine { engine: "MPI", reason: "it was entered before in this process".into() })
            }
        }
    }

    /// Starts the sum of `values`; the receiver gets it.
    pub(super) fn start(&self, values: Vec<f32>) -> Result<Receiver<Vec<f32>>, DistributedError> {
        self.ask(|answer| Command::SumFloats(values, answer))
    }

    pub(super) fn sum(&self, values: &mut [f64]) -> Result<(), DistributedError> {
        let sums = receive(&self.ask(|answer| Command::SumDoubles(values.to_vec(), answer))?)?;
        values.copy_from_slice(&sums);
        Ok(())
    }

    pub(super) fn broadcast(&self, bytes: &mut [u8]) -> Result<(), DistributedError> {
        let sent = receive(&self.ask(|answer| Command::Broadcast(bytes.to_vec(), answer))?)?;
        bytes.copy_from_slice(&sent);
        Ok(())
    }

    pub(super) fn barrier(&self) -> Result<(), DistributedError> {
        receive(&self.ask(Command::Barrier)?)
    }

    /// Waits for the others, who must leave too.
    pub(super) fn leave(&self) -> Result<(), DistributedError> {
        receive(&self.ask(Command::Leave)?)
    }

    /// Ends every process of the world.
    pub(super) fn abort(&self, code: i32) -> ! {
        if self.any_thread_may_abort {
            // SAFETY: MPI was entered with support for calls from every thread.
            unsafe { tec_mpi_abort(code) };
        }
        // The launcher ends the others when one leaves without a farewell.
        std::process::exit(code)
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<Receiver<T>, DistributedError> {
        let (answer, reply) = channel();
        self.commands.send(command(answer)).map_err(|_| ended())?;
        Ok(reply)
    }
}

/// Waits for an answer.
pub(super) fn receive<T>(reply: &Receiver<T>) -> Result<T, DistributedError> {
    reply.recv().map_err(|_| ended())
}

fn ended() -> DistributedError {
    DistributedError::Engine { engine: "MPI", reason: "its thread has ended".into() }
}

/// Answers commands until the process leaves; an answer nobody waits for is dropped.
///
/// When nobody says goodbye, MPI is not left either: that would wait for the others, who may wait for this process.
fn serve(todo: &Receiver<Command>) {
    for command in todo {
        // SAFETY: this thread entered MPI and alone calls it until `Leave`; every pointer is that of a slice of as many
        // values as are passed.
        unsafe {
            match command {
                Command::SumFloats(mut values, answer) => {
                    for part in values.chunks_mut(CHUNK) {
                        tec_mpi_sum_floats(part.as_mut_ptr(), part.len() as c_int);
                    }
                    let _ = answer.send(values);
                }
                Command::SumDoubles(mut values, answer) => {
                    for part in values.chunks_mut(CHUNK) {
                        tec_mpi_sum_doubles(part.as_mut_ptr(), part.len() as c_int);
                    }
                    let _ = answer.send(values);
                }
                Command::Broadcast(mut bytes, answer) => {
                    for part in bytes.chunks_mut(CHUNK) {
                        tec_mpi_broadcast(part.as_mut_ptr(), part.len() as c_int);
                    }
                    let _ = answer.send(bytes);
                }
                Command::Barrier(answer) => {
                    tec_mpi_barrier();
                    let _ = answer.send(());
                }
                Command::Leave(answer) => {
                    tec_mpi_leave();
                    let _ = answer.send(());
                    return;
                }
            }
        }
    }
}
