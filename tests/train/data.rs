//! A run and its images: it goes on with the same and with no others, and says what it does not read.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use super::{Place, checkpoints};

/// Three updates, of which the last checkpoint is then removed: there is something to go on with.
fn started(place: &Place) {
    place.pretrain("run", &SHORT);
    for path in checkpoints(&place.path("run")).into_iter().skip(1) {
        fs::remove_dir_all(path).unwrap();
    }
    fs::remove_dir_all(place.path("run/model")).unwrap();
}

const SHORT: [&str; 3] = ["optimizer.epochs=2", "optimizer.warmup_epochs=1", "run.keep_last=9"];

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_run_goes_on_with_its_own_images_wherever_they_are_and_with_no_others() {
    let place = Place::new();
    place.pretrain("whole", &SHORT);
    started(&place);
    // Other images of as many, under the same names and under others.
    place.photos("others", 27);
    fs::remove_file(place.path("others/00.png")).unwrap();
    fs::create_dir(place.path("renamed")).unwrap();
    fs::create_dir(place.path("edited")).unwrap();
    fs::create_dir(place.path("swapped")).unwrap();
    for i in 0..26 {
        let (from, to) = (format!("photos/{i:02}.png"), format!("{:02}.png", i + 1));
        fs::copy(place.path(&from), place.path(&format!("renamed/{to}"))).unwrap();
        fs::copy(place.path(&from), place.path(&format!("edited/{i:02}.png"))).unwrap();
        let swapped = place.path(&format!("swapped/{i:02}.png"));
        fs::copy(place.path(&from), &swapped).unwrap();
        // The same size, the same name, another byte.
        let mut bytes = fs::read(&swapped).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&swapped, bytes).unwrap();
    }
    let mut longer = fs::read(place.path("edited/03.png")).unwrap();
    longer.push(0);
    fs::write(place.path("edited/03.png"), longer).unwrap();

    let before = fs::read(place.path("run/run.json")).unwrap();
    for (data, difference) in [
        ("others", "the names of images differ"),
        ("renamed", "the names of images differ"),
        ("edited", "the sizes of images differ"),
        ("swapped", "the contents of images differ"),
    ] {
        let stderr = place.fails(1, &["pretrain", "--out", "run", "--resume", "--data", data]);
        assert!(stderr.contains("was started with other data") && stderr.contains(difference), "{data}: {stderr}");
        assert!(stderr.contains(&format!("/{data}`")) && stderr.contains("--allow-other-data"), "{data}: {stderr}");
    }
    assert_eq!(fs::read(place.path("run/run.json")).unwrap(), before, "a refusal changes nothing");

    // The same images in another place are the same.
    fs::rename(place.path("photos"), place.path("moved")).unwrap();
    place.ok(&["pretrain", "--out", "run", "--resume", "--data", "moved"]);
    place.outcome("run").assert_is(&place.outcome("whole"), "moved images");
}

#[test]
fn other_images_can_be_allowed_and_are_then_written_down() {
    let place = Place::new();
    started(&place);
    let was = json(&place.path("run/run.json"));
    place.photos("others", 27);
    let arguments = ["pretrain", "--out", "run", "--resume", "--data", "others"];
    let stderr = place.fails(1, &arguments);
    assert!(stderr.contains("the number of images differ"), "{stderr}");
    place.ok(&[&arguments[..], &["--allow-other-data"]].concat());
    for file in ["run/run.json", "run/checkpoints/step-00000006/checkpoint.json"] {
        let about = json(&place.path(file));
        let about = if file.ends_with("run.json") { about } else { about["belongs"]["run"].clone() };
        assert_eq!(about["images"], 27, "{file}");
        assert_eq!(about["earlier_data"][0]["until"], 3, "{file}");
        assert_eq!(about["earlier_data"][0]["digest"], was["digest"], "{file}");
        assert_eq!(about["earlier_data"][0]["images"], 26, "{file}");
    }
    // It goes on with these from now on, without leave; and no longer with those of the beginning.
    place.ok(&["pretrain", "--out", "run", "--resume"]);
    place.fails(1, &["pretrain", "--out", "run", "--resume", "--data", "photos"]);
}

#[test]
fn a_run_of_an_older_version_goes_on_and_is_said_not_to_know_its_images() {
    let place = Place::new();
    started(&place);
    let path = place.path("run/run.json");
    let mut about = json(&path);
    about.as_object_mut().unwrap().shift_remove("digest");
    fs::write(&path, about.to_string()).unwrap();
    for checkpoint in checkpoints(&place.path("run")) {
        let path = checkpoint.join("checkpoint.json");
        let mut record = json(&path);
        record["belongs"].as_object_mut().unwrap().shift_remove("run");
        fs::write(&path, record.to_string()).unwrap();
    }
    let output = place.run(&["pretrain", "--out", "run", "--resume"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("does not say which images it was started with"), "{}", stderr(&output));
    assert_eq!(json(&path)["digest"]["images"], 26, "from now on it does");
}

#[test]
fn a_damaged_run_file_is_no_reason_not_to_go_on() {
    let place = Place::new();
    place.pretrain("whole", &SHORT);
    started(&place);
    let path = place.path("run/run.json");
    let before = json(&path);
    for damaged in [&b""[..], b"{", b"nonsense\xff"] {
        fs::write(&path, damaged).unwrap();
        let output = place.run(&["pretrain", "--out", "run", "--resume"]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stderr(&output).contains("run.json` cannot be used"), "{}", stderr(&output));
        assert_eq!(json(&path), before, "it is whole again");
    }
    fs::remove_file(&path).unwrap();
    place.ok(&["pretrain", "--out", "run", "--resume"]);
    place.outcome("run").assert_is(&place.outcome("whole"), "a damaged run.json");
}

#[cfg(unix)]
#[test]
fn a_data_folder_whose_name_is_no_text_is_written_down_and_found_again() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let odd = std::ffi::OsStr::from_bytes(b"caf\xe9");
    fs::rename(place.path("photos"), place.dir.path().join(odd)).unwrap();
    let mut arguments = place.arguments("run", &SHORT);
    let at = arguments.iter().position(|argument| *argument == "photos").unwrap();
    let rest = arguments.split_off(at + 1);
    arguments.pop();
    let output = place.command(&arguments).arg(odd).args(rest).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let about = json(&place.path("run/run.json"));
    assert!(about["data"]["hex"].as_str().unwrap().ends_with("636166e9"), "{about}");
    assert!(about["data"]["lossy"].as_str().unwrap().ends_with("caf\u{fffd}"), "{about}");
    fs::remove_dir_all(place.path("run/checkpoints/step-00000006")).unwrap();
    place.ok(&["pretrain", "--out", "run", "--resume"]);
}

#[test]
fn what_is_not_read_is_said_at_the_start_and_a_truncated_shard_ends_nothing() {
    let place = Place::new();
    for name in ["a.heic", "b.HEIC", "c.avif", "notes.txt"] {
        fs::write(place.path("photos").join(name), name).unwrap();
    }
    let output = place.run(&place.arguments("folder", &SHORT));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("3 files are not read: 2 heic, 1 avif"), "{}", stderr(&output));

    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all("", place.path("photos")).unwrap();
    let whole = builder.into_inner().unwrap();
    fs::create_dir(place.path("shards")).unwrap();
    fs::write(place.path("shards/0.tar"), &whole).unwrap();
    fs::write(place.path("shards/1.tar"), &whole[..whole.len() / 2 + 77]).unwrap();
    let of = |out: &'static str, set: &[&'static str]| {
        let mut arguments = place.arguments(out, set);
        *arguments.iter_mut().find(|argument| **argument == "photos").unwrap() = "shards";
        arguments
    };
    let output = place.run(&of("run", &SHORT));
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.contains("1.tar`: it is truncated") && said.contains("images are used"), "{said}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["skipped"], 1, "it counts as a broken image");
    let stderr = place.fails(1, &of("strict", &[&SHORT[..], &["data.broken=0"]].concat()));
    assert!(stderr.contains("1.tar") && stderr.contains("more than the 0 allowed"), "{stderr}");
}

/// The kept scan is believed once its folder has been left alone for a moment.
#[test]
fn a_resume_does_not_look_through_the_folders_again() {
    let place = Place::new();
    std::thread::sleep(std::time::Duration::from_millis(3_200));
    started(&place);
    let kept = place.path("run/data.json");
    let scan = |path: &Path| {
        tec_zoo::data::Dataset::scan_or_kept(path, &kept, &mut |_| std::ops::ControlFlow::Continue(())).unwrap()
    };
    assert!(scan(&place.path("photos")).is_kept());
    place.ok(&["pretrain", "--out", "run", "--resume"]);
    fs::write(place.path("photos/new.jpg"), b"").unwrap();
    assert!(!scan(&place.path("photos")).is_kept());
    let stderr = place.fails(1, &["pretrain", "--out", "run", "--resume"]);
    assert!(stderr.contains("the number of images differ"), "{stderr}");
}
