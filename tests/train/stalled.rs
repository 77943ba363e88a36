//! A run that waits for what never comes is reported and ended, and one that the user stops ends soon, whatever it waits for.

use std::io::Read;
use std::ops::ControlFlow;
use std::process::{Child, Command, ExitStatus};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use candle_core::Device;
use tec_zoo::data::LoaderActivity;
use tec_zoo::model::Canonical;
use tec_zoo::train::distributed::{Place as Rank, World};
use tec_zoo::train::{Base, End, News, Pretraining, Recipe, pretrain};

use super::{Place, checkpoints};

/// No machine is so slow that what should take a second or two takes longer.
const SOON: Duration = Duration::from_secs(90);

impl Place {
    /// The photos as one shard.
    fn shard(&self, name: &str) {
        let mut tar = tar::Builder::new(std::fs::File::create(self.path(name)).unwrap());
        tar.append_dir_all(".", self.path("photos")).unwrap();
        tar.finish().unwrap();
    }

    /// [`Self::arguments`] on the shard `data` instead of the photos.
    fn on<'a>(&self, data: &'a str, out: &'a str, set: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = self.arguments(out, set);
        let at = arguments.iter().position(|argument| *argument == "photos").unwrap();
        arguments[at] = data;
        arguments
    }

    /// Puts a pipe that nobody writes to in the place of `data`, as a file server that does not answer would look: to open it
    /// waits for ever.
    fn stop_answering(&self, data: &str) {
        let pipe = self.path("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        std::fs::rename(self.path(data), self.path("answered")).unwrap();
        std::fs::rename(pipe, self.path(data)).unwrap();
    }
}

fn signal(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// The exit of what must end soon.
fn ended(child: &mut Child) -> (ExitStatus, String) {
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > SOON {
            child.kill().unwrap();
            panic!("it goes on and on");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (status, stderr)
}

#[test]
fn a_listener_that_does_not_answer_is_reported_with_what_every_thread_is_at_and_ends_nothing() {
    let place = Place::new();
    let set = ["optimizer.epochs=4"];
    place.pretrain("alone", &set);
    let arguments = place.arguments("run", &set);
    let sets = arguments.windows(2).filter(|pair| pair[0] == "--set").map(|pair| pair[1].to_owned());
    let sets = sets.chain(["run.watchdog_minutes=0.02".to_owned()]).collect::<Vec<_>>();
    let settings = Pretraining {
        recipe: Recipe::load("nano", &sets).unwrap(),
        base: Some(Base { name: "mae".into(), model: Canonical::open(&place.path("mae")).unwrap(), tec: None }),
        data: place.path("photos"),
        out: place.path("run"),
        resume: false,
        allow_other_data: false,
        branch: None,
        device: Device::Cpu,
    };
    let (reported, report) = channel();
    let (reported, report, mut answered) = (Mutex::new(reported), Mutex::new(report), false);
    let mut hear = |news: News<'_>| {
        if let News::MicroBatch { step: 3, done: 1, of: 2, .. } = news
            && !answered
        {
            // The planted stall: it lasts until somebody has noticed.
            answered = true;
            let stall: tec_zoo::train::Stall = report.lock().unwrap().recv_timeout(SOON).expect("nobody noticed");
            assert_eq!((stall.update, stall.micro_batch, stall.telling), (3, (1, 2), true));
            assert!(stall.still >= Duration::from_millis(1200) && stall.median.is_some(), "{stall:?}");
            assert_eq!(stall.loader, [LoaderActivity::Waiting, LoaderActivity::Waiting]);
            let text = stall.to_string();
            assert!(text.contains("update 3, micro-batch 1 of 2: the backward pass"), "{text}");
            assert!(text.contains("whoever listens has not answered\n  loader 0: nothing to do"), "{text}");
        }
        ControlFlow::Continue(())
    };
    let world = World::join(Rank::alone(), &Device::Cpu).unwrap();
    let end = pretrain(&settings, &world, &mut hear, &|stall| reported.lock().unwrap().send(stall.clone()).unwrap());
    assert!(matches!(end.unwrap(), End::Finished(Some(_))) && answered);
    place.outcome("run").assert_is(&place.outcome("alone"), "after a stall");
}

#[test]
#[cfg(unix)]
fn images_that_never_come_end_the_program_with_a_report_and_the_checkpoint_whole() {
    let place = Place::new();
    place.shard("photos.tar");
    place.ok(&place.on("photos.tar", "alone", &[]));
    let set = ["run.watchdog_minutes=0.05", "run.save_steps=1"];
    let mut child = place.command(&place.on("photos.tar", "run", &set)).spawn().unwrap();
    place.wait_for("run", 5, &mut child);
    place.stop_answering("photos.tar");
    let (status, stderr) = ended(&mut child);
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("the run stands still: no micro-batch has ended for 3 s; one takes 0."), "{stderr}");
    assert!(stderr.contains(": waiting for images\n  loader 0: reading `photos.tar`\n"), "{stderr}");
    assert!(stderr.contains("hint: `tec-zoo pretrain --out run --resume` goes on"), "{stderr}");
    assert!(!checkpoints(&place.path("run")).is_empty());
    std::fs::rename(place.path("answered"), place.path("photos.tar")).unwrap();
    let mut arguments = place.on("photos.tar", "run", &["run.watchdog_minutes=0"]);
    arguments.push("--resume");
    place.ok(&arguments);
    place.outcome("run").assert_is(&place.outcome("alone"), "after the images came back");
}

#[test]
#[cfg(unix)]
fn ctrl_c_ends_a_run_that_waits_for_images_that_never_come() {
    let place = Place::new();
    place.shard("photos.tar");
    let mut child = place.command(&place.on("photos.tar", "run", &["run.save_steps=1000"])).spawn().unwrap();
    place.wait_for("run", 5, &mut child);
    place.stop_answering("photos.tar");
    std::thread::sleep(Duration::from_secs(1));
    signal(&child, "-INT");
    let (status, stderr) = ended(&mut child);
    assert_eq!(status.code(), Some(130), "{stderr}");
    assert!(stderr.contains(" of 120, saved\n"), "{stderr}");
    assert_eq!(checkpoints(&place.path("run")).len(), 1);
}

#[test]
#[cfg(unix)]
fn a_process_that_was_stopped_for_a_while_did_not_stand_still() {
    let place = Place::new();
    let set = ["run.watchdog_minutes=0.1", "optimizer.epochs=40000", "run.save_steps=100000"];
    let mut child = place.command(&place.arguments("run", &set)).spawn().unwrap();
    place.wait_for("run", 5, &mut child);
    signal(&child, "-STOP");
    std::thread::sleep(Duration::from_secs(10));
    signal(&child, "-CONT");
    let steps = place.records("run").len();
    place.wait_for("run", steps + 50, &mut child);
    signal(&child, "-INT");
    let (status, stderr) = ended(&mut child);
    assert_eq!(status.code(), Some(130), "{stderr}");
    assert!(!stderr.contains("stands still"), "{stderr}");
}

#[test]
#[cfg(unix)]
fn ctrl_c_ends_a_long_update_at_the_next_block_and_drops_it() {
    let place = Place::new();
    // Each image some thousand times: an update of sixteen thousand micro-batches.
    let photos: String = (0..26).map(|i| format!("photos/{i:02}.png\n")).collect();
    std::fs::write(place.path("list.txt"), photos.repeat(2521)).unwrap();
    let set = ["optimizer.batch=65536", "optimizer.base_lr=1e-5"];
    let mut child = place.command(&place.on("list.txt", "run", &set)).spawn().unwrap();
    let start = Instant::now();
    while !place.path("run/metrics.jsonl").exists() {
        assert!(child.try_wait().unwrap().is_none() && start.elapsed() < SOON, "it did not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_secs(2));
    let sent = Instant::now();
    signal(&child, "-INT");
    let (status, stderr) = ended(&mut child);
    assert_eq!(status.code(), Some(130), "{stderr}");
    assert!(sent.elapsed() < Duration::from_secs(20), "{:?}", sent.elapsed());
    assert!(stderr.contains("stopping …"), "{stderr}");
    assert!(stderr.contains("stopped after update 0 of 40, saved"), "{stderr}");
    assert!(checkpoints(&place.path("run"))[0].ends_with("step-00000000"));
}
