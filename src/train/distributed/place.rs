//! Where a process stands among those a launcher started, from the variables the launchers set.

use super::DistributedError;

/// The port torchrun takes when none is named.
const DEFAULT_PORT: u16 = 29500;

/// More processes than this are a mistyped variable.
const MOST_PROCESSES: usize = 1 << 16;

/// A process's place in its world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// 0 … `size` − 1; rank 0 writes the files.
    pub rank: usize,
    /// Processes in all.
    pub size: usize,
    /// The process's number on its own machine: the GPU it takes.
    pub local_rank: usize,
    /// Where rank 0 can be met, `host:port`, when the launcher said.
    pub meeting: Option<String>,
    /// Who started the processes.
    pub launcher: Launcher,
}

/// What started the processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// Nobody: the process is on its own.
    None,
    /// `torchrun`, or anything that sets its variables.
    Torchrun,
    /// `mpirun` or `mpiexec`.
    Mpirun,
    /// `srun`.
    Srun,
}

/// Variables of a launcher: rank, size and, if it has one, the rank on this machine.
struct Names {
    launcher: Launcher,
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
}

/// In the order they are asked: what runs inside another launcher's allocation comes before it.
///
/// torchrun: <https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables>. Slurm's are those of a
/// *step*: a batch script has `SLURM_NTASKS` too, but is one process.
const LAUNCHERS: [Names; 4] = [
    Names { launcher: Launcher::Torchrun, rank: "RANK", size: "WORLD_SIZE", local_rank: "LOCAL_RANK" },
    Names {
        launcher: Launcher::Mpirun,
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    },
    Names { launcher: Launcher::Mpirun, rank: "PMI_RANK", size: "PMI_SIZE", local_rank: "MPI_LOCALRANKID" },
    Names { launcher: Launcher::Srun, rank: "SLURM_PROCID", size: "SLURM_STEP_NUM_TASKS", local_rank: "SLURM_LOCALID" },
];

impl Place {
    /// A process on its own.
    pub fn alone() -> Self {
        Self { rank: 0, size: 1, local_rank: 0, meeting: None, launcher: Launcher::None }
    }

    /// The place that the variables answered by `variable` give; without any, [`Place::alone`].
    ///
    /// # Errors
    /// A launcher's variables are incomplete, no numbers, or contradict one another.
    ///
    /// ```
    /// use tec_zoo::train::distributed::Place;
    ///
    /// let variables = [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "node7")];
    /// let place = Place::read(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))?;
    /// assert_eq!((place.rank, place.size, place.local_rank), (3, 4, 1));
    /// assert_eq!(place.meeting.as_deref(), Some("node7:29500"));
    /// # Ok::<(), tec_zoo::train::distributed::DistributedError>(())
    /// ```
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, DistributedError> {
        for names in &LAUNCHERS {
            let (rank, size) = match (variable(names.rank), variable(names.size)) {
                (Some(rank), Some(size)) => (number(names.rank, &rank)?, number(names.size, &size)?),
                (Some(_), None) if names.launcher == Launcher::Torchrun => {
                    return Err(DistributedError::Incomplete { present: names.rank, missing: names.size });
                }
                (None, Some(_)) if names.launcher == Launcher::Torchrun => {
                    return Err(DistributedError::Incomplete { present: names.size, missing: names.rank });
                }
                _ => continue,
            };
            if rank >= size || size > MOST_PROCESSES {
                return Err(DistributedError::Rank { rank, size, rank_name: names.rank, size_name: names.size });
            }
            let local_rank = match variable(names.local_rank) {
                Some(value) => number(names.local_rank, &value)?,
                None if size == 1 => 0,
                None => return Err(DistributedError::Incomplete { present: names.rank, missing: names.local_rank }),
            };
            let meeting = meeting(&variable, size)?;
            return Ok(Self { rank, size, local_rank, meeting, launcher: names.launcher });
        }
        Ok(Self::alone())
    }
}

fn number(name: &'static str, value: &str) -> Result<usize, DistributedError> {
    value.trim().parse().map_err(|_| DistributedError::Variable { name, value: value.into() })
}

fn meeting(variable: &impl Fn(&str) -> Option<String>, size: usize) -> Result<Option<String>, DistributedError> {
    let port = match variable("MASTER_PORT") {
        Some(value) => value
            .trim()
            .parse::<u16>()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(DistributedError::Variable { name: "MASTER_PORT", value })?,
        None => DEFAULT_PORT,
    };
    // torchrun's own store listens on the port it hands out.
    let taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
    let port = if taken { port.checked_add(1).unwrap_or(DEFAULT_PORT) } else { port };
    let host = variable("MASTER_ADDR").filter(|host| !host.trim().is_empty()).or_else(|| {
        let together = variable("OMPI_COMM_WORLD_LOCAL_SIZE").or_else(|| variable("MPI_LOCALNRANKS"));
        if together.and_then(|n| n.trim().parse().ok()) == Some(size) {
            return Some("127.0.0.1".into());
        }
        first_node(&variable("SLURM_STEP_NODELIST")?)
    });
    // An IPv6 address stands in brackets before a port.
    Ok(host.map(|host| match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }))
}

/// The first host of a Slurm node list: `gpu[01-04,7]` → `gpu01`. Rank 0 runs there, unless the distribution of the
/// tasks is set by hand.
fn first_node(list: &str) -> Option<String> {
    let mut node = String::new();
    let mut rest = list.chars();
    while let Some(c) = rest.next() {
        match c {
            ',' => break,
            // Of a range or a choice, the first number.
            '[' => {
                let mut first = true;
                loop {
                    match rest.next()? {
                        ']' => break,
                        ',' | '-' => first = false,
                        digit if first => node.push(digit),
                        _ => {}
                    }
                }
            }
            c => node.push(c),
        }
    }
    (!node.is_empty()).then_some(node)
}
