//! The program never waits for nothing, and stops when it is told to: each command is sent the signal at several moments,
//! answers, ends, and leaves nothing half-written.

use std::path::Path;
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

const STDERR: &str = "stderr.txt";

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
