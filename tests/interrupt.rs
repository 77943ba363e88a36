//! The program never waits for nothing, and stops when it is told to: each command is sent the signal at several moments,
//! answers, ends, and leaves nothing half-written.

mod models;
mod network;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

/// Longest that anything here may take to end; the program promises a second, a busy machine is given more.
const BOUND: Duration = Duration::from_secs(5);

/// A program that was started in a folder of its own.
struct Run {
    child: Child,
    folder: tempfile::TempDir,
}

/// How a program ended.
struct Ended {
    code: Option<i32>,
    stderr: String,
    took: Duration,
}

/// The program, in `folder`, with its home there and nothing of the machine's environment.
fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tec-zoo"));
    surroundings(&mut command, folder);
    command
}

fn surroundings(command: &mut Command, folder: &Path) {
    command.current_dir(folder).env("TEC_ZOO_HOME", folder.join("home")).env_remove("NO_COLOR");
    command.env("TORCH_HOME", folder.join("none")).env("HF_HOME", folder.join("none"));
    // What is thrown away at the end is looked for as well.
    let temporary = folder.join("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    command.env("TMPDIR", temporary);
    command.stdin(Stdio::null()).stdout(Stdio::null());
}

impl Run {
    fn start(folder: tempfile::TempDir, mut command: Command) -> Self {
        // A file, not a pipe: nobody has to read it for the program to go on.
        let stderr = std::fs::File::create(folder.path().join(STDERR)).unwrap();
        let child = command.stderr(stderr).spawn().unwrap();
        Self { child, folder }
    }

    /// Waits for the end, for `bound` at most.
    fn end(&mut self, bound: Duration) -> Ended {
        let started = Instant::now();
        let code = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status.code();
            }
            if started.elapsed() > bound {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
                panic!("still running after {bound:?}; it said:\n{}", self.stderr());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Ended { code, stderr: self.stderr(), took: started.elapsed() }
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(self.folder.path().join(STDERR)).unwrap()
    }
}

/// Where a program's words go.
const STDERR: &str = "stderr.txt";

/// What tells that a program is where it is to be interrupted: its folder, and what it said so far.
type Ready<'a> = &'a dyn Fn(&Path, &str) -> bool;

/// A moment of a command at which it is told to stop.
struct Moment<'a> {
    /// What it is called with; paths are of its own folder.
    arguments: &'a [&'a str],
    /// From when on.
    ready: Ready<'a>,
    /// So long after that.
    later: Duration,
}

/// Starts the command in a folder that `prepare` has furnished, tells it to stop at the moment, and judges how it ends: it
/// answers, ends in time with 130 and leaves nothing half-written. `None` when it was done before; otherwise what it said.
fn interrupted(moment: &Moment<'_>, signal: &str, prepare: &dyn Fn(&Path)) -> Option<String> {
    let Moment { arguments, ready, later } = moment;
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let mut command = program(folder.path());
    command.args(*arguments);
    let before = everything(folder.path());
    let mut run = Run::start(folder, command);
    let started = Instant::now();
    while !(listens(run.child.id()) && ready(run.folder.path(), &run.stderr())) {
        if run.child.try_wait().unwrap().is_some() {
            return None;
        }
        let waited = started.elapsed();
        assert!(waited < 12 * BOUND, "{arguments:?} never came to where it is stopped: {}", run.stderr());
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(*later);
    assert!(Command::new("kill").args([signal, &run.child.id().to_string()]).status().unwrap().success());
    let Ended { code, stderr, took } = run.end(BOUND);
    let after = everything(run.folder.path());
    if code != Some(130) {
        assert!(code == Some(0) || !stderr.contains("stopping"), "{arguments:?} ended with {code:?}: {stderr}");
        return None;
    }
    assert!(stderr.contains("stopping"), "{arguments:?} did not answer {signal}: {stderr}");
    let resumes = stderr.contains("goes on from here");
    let kept = |path: &PathBuf| {
        let extension = path.extension().unwrap_or_default();
        resumes && (extension == "part" || extension == "journal" || ["/blobs/", "/trees/"].iter().any(|kept| path.to_string_lossy().contains(kept)))
            || path.ends_with(STDERR)
            // ONNX Runtime's own.
            || path.ends_with(".ses")
            // Whole before the check began that was stopped.
            || stderr.contains("is written, and not checked") && path.ends_with("out.onnx")
            || !path.file_name().unwrap().to_string_lossy().starts_with('.') && path.is_dir()
            || path.to_string_lossy().contains("/home/fingerprints/")
    };
    let left: Vec<&PathBuf> = after.iter().filter(|path| !before.contains(path) && !kept(path)).collect();
    assert!(left.is_empty(), "{arguments:?} left {left:?} after {took:?}: {stderr}");
    Some(stderr)
}

/// Whether the process hears SIGINT: before it does, it just dies, as any program.
fn listens(process: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{process}/status")) else { return true };
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught.is_none_or(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & 2 != 0))
}

/// Every path under `folder`.
fn everything(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|sort| sort.is_dir()) {
            found.extend(everything(&path));
        }
        found.push(path);
    }
    found
}

/// Whether `folder` holds something hidden: what is being made there.
fn hidden(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with('.'))
}

/// Name of the lock on `what`.
fn lock_of(what: &str) -> String {
    let hash: String = Sha256::digest(what).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}.lock", &hash[..32])
}

#[test]
fn sixty_fetches_that_fail_at_once_end_at_once_on_one_processor() {
    // Where there is no `taskset`, the scheduler decides, and the fault is less likely to show.
    let pinned = Command::new("taskset").args(["-c", "0", "true"]).status().is_ok_and(|status| status.success());
    for run in 0..60 {
        let folder = tempfile::tempdir().unwrap();
        let mut command = match pinned {
            true => Command::new("taskset"),
            false => program(folder.path()),
        };
        if pinned {
            command.args(["-c", "0", env!("CARGO_BIN_EXE_tec-zoo")]);
            surroundings(&mut command, folder.path());
        }
        command.args(["fetch", "ibot-vitb", "--offline"]);
        let ended = Run::start(folder, command).end(BOUND);
        assert_eq!(ended.code, Some(4), "run {run}, after {:?}: {}", ended.took, ended.stderr);
    }
}

#[test]
fn a_lock_that_is_no_file_is_refused_by_name() {
    for pipe in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let locks = folder.path().join("home/locks");
        std::fs::create_dir_all(&locks).unwrap();
        let lock = locks.join(lock_of("model ibot-vitb"));
        if pipe {
            assert!(Command::new("mkfifo").arg(&lock).status().unwrap().success());
        } else {
            std::os::unix::fs::symlink("nowhere", &lock).unwrap();
        }
        let mut command = program(folder.path());
        command.args(["fetch", "ibot-vitb", "--offline"]);
        let ended = Run::start(folder, command).end(BOUND);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert!(
            ended.stderr.contains(lock.to_str().unwrap()) && ended.stderr.contains("remove it"),
            "{}",
            ended.stderr
        );
    }
}
