//! Which start of which machine this is, and whether a process still lives.
//!
//! A killed process leaves what it wrote in the system's cache: those bytes are as good as written. A power cut takes
//! them. The boot id tells the two apart without waiting for the disk.

use std::sync::OnceLock;

/// Identifies this start of this machine; `None` where the system does not say.
pub(super) fn id() -> Option<&'static str> {
    static ID: OnceLock<Option<String>> = OnceLock::new();
    let read = || Some(std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned());
    ID.get_or_init(read).as_deref()
}

/// Identifies this process where process numbers mean the same: start of the machine, number space, number, start time.
pub(super) fn process() -> Option<Process> {
    let pid = std::process::id();
    Some(Process { space: space()?, pid, started: started(pid)? })
}

/// A process of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    /// Boot id and process-number namespace: containers on one machine count their processes apart.
    pub space: String,
    /// Process number.
    pub pid: u32,
    /// Start time in clock ticks: a number can be given again.
    pub started: u64,
}

impl Process {
    /// Whether it has certainly ended; false where that cannot be told from here.
    pub(super) fn is_dead(&self) -> bool {
        space().is_some_and(|here| here == self.space) && started(self.pid) != Some(self.started)
    }
}

fn space() -> Option<String> {
    let numbers = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{}/{}", id()?, numbers.display()).replace(char::is_whitespace, ""))
}

fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command, in parentheses, may hold anything; fields are counted from its end.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // A zombie no longer writes.
    if matches!(fields.first(), Some(&("Z" | "X"))) {
        return None;
    }
    fields.get(19)?.parse().ok()
}
