//! The loader: the same batches whatever the threads and wherever it starts, broken images, errors, endings.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use tec_zoo::data::{Augment, DataError, Dataset, Loader, LoaderSettings, Position, Share, TrainBatch};

use crate::words::InFull;

fn settings() -> LoaderSettings {
    LoaderSettings {
        seed: 11,
        augment: Augment { size: [16, 24], ..Augment::default() },
        batch: 4,
        noise: 6,
        share: Share { rank: 0, world: 1 },
        epochs: 2,
        batches: None,
        workers: 2,
        prefetch: 2,
        broken_limit: 2,
    }
}

fn open(path: &Path) -> Arc<Dataset> {
    Arc::new(Dataset::open(path).unwrap())
}

fn all(dataset: &Arc<Dataset>, settings: LoaderSettings, start: Position) -> Vec<TrainBatch> {
    Loader::new(dataset.clone(), settings, start).unwrap().map(Result::unwrap).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn assert_same(a: &[TrainBatch], b: &[TrainBatch]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert_eq!((a.position, &a.samples, &a.names), (b.position, &b.samples, &b.names));
        assert!(bits(&a.images) == bits(&b.images) && bits(&a.noise) == bits(&b.noise), "{:?}", a.position);
    }
}

#[test]
fn batches_are_the_same_to_the_bit_whatever_the_threads_and_the_start() {
    let dir = super::folder(22);
    let dataset = open(dir.path());
    let reference = all(&dataset, settings(), Position::default());
    assert_eq!(reference.len(), 10, "two epochs of 22 / 4 batches");
    for (workers, prefetch) in [(1, 1), (5, 1), (3, 7)] {
        assert_same(
            &reference,
            &all(&dataset, LoaderSettings { workers, prefetch, ..settings() }, Position::default()),
        );
    }
    for (at, batch) in reference.iter().enumerate() {
        assert_same(&reference[at..], &all(&dataset, LoaderSettings { workers: 3, ..settings() }, batch.position));
    }
    let over = all(&dataset, settings(), Position { epoch: 0, batch: 5 });
    assert_same(&reference[5..], &over);
}

#[test]
fn an_epoch_differs_from_the_next_and_a_seed_from_another() {
    let dir = super::folder(8);
    let dataset = open(dir.path());
    let reference = all(&dataset, settings(), Position::default());
    let sample = |batches: &[TrainBatch], sample: u64| {
        let found =
            batches.iter().flat_map(|batch| batch.samples.iter().enumerate().map(move |(slot, id)| (*id, batch, slot)));
        let (_, batch, slot) = found.into_iter().find(|(id, ..)| *id == sample).unwrap();
        (bits(&batch.images[slot * 1152..(slot + 1) * 1152]), bits(&batch.noise[slot * 6..(slot + 1) * 6]))
    };
    let (first, second) = reference.split_at(2);
    let other = all(&dataset, LoaderSettings { seed: 12, ..settings() }, Position::default());
    for id in 0..8 {
        let here = sample(first, id);
        assert!(here.0 != sample(second, id).0 && here.1 != sample(second, id).1, "{id}");
        assert!(here.0 != sample(&other[..2], id).0 && here.1 != sample(&other[..2], id).1, "{id}");
    }
}

#[test]
fn two_ranks_see_what_one_process_with_twice_the_batch_sees() {
    let dir = super::folder(17);
    let dataset = open(dir.path());
    let one = all(&dataset, LoaderSettings { batch: 8, ..settings() }, Position::default());
    let two = [0, 1].map(|rank| {
        all(&dataset, LoaderSettings { share: Share { rank, world: 2 }, ..settings() }, Position::default())
    });
    assert_eq!([one.len(), two[0].len(), two[1].len()], [4; 3]);
    for (at, batch) in one.iter().enumerate() {
        let of = |batch: &TrainBatch| -> BTreeMap<u64, Vec<u32>> {
            batch.samples.iter().copied().zip(batch.images.chunks(1152).map(bits)).collect()
        };
        let mut both = of(&two[0][at]);
        both.extend(of(&two[1][at]));
        assert!(of(batch) == both, "batch {at}");
    }
}

#[test]
fn shards_give_what_their_folder_gives() {
    let dir = super::folder(12);
    let folder = open(dir.path());
    let shards = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    for shard in 0..3 {
        let file = fs::File::create(shards.path().join(format!("{shard}.tar"))).unwrap();
        let mut builder = tar::Builder::new(file);
        for at in shard * 4..shard * 4 + 4 {
            let name = folder.read(at, &mut bytes).unwrap();
            let extension = Path::new(&name).extension().unwrap().to_str().unwrap().to_owned();
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, format!("{at:03}.{extension}"), &bytes[..]).unwrap();
        }
        builder.finish().unwrap();
    }
    let (a, b) =
        (all(&folder, settings(), Position::default()), all(&open(shards.path()), settings(), Position::default()));
    for (a, b) in a.iter().zip(&b) {
        assert!(a.samples == b.samples && bits(&a.images) == bits(&b.images));
    }
}

#[test]
fn a_broken_image_is_named_and_replaced_the_same_way_by_any_number_of_threads() {
    let dir = super::folder(12);
    fs::write(dir.path().join("class0/003.jpg"), b"\xff\xd8\xff nothing").unwrap();
    fs::write(dir.path().join("class2/005.webp"), b"").unwrap();
    let dataset = open(dir.path());
    let runs = [1, 4].map(|workers| {
        let mut loader =
            Loader::new(dataset.clone(), LoaderSettings { workers, ..settings() }, Position::default()).unwrap();
        let batches: Vec<TrainBatch> = loader.by_ref().map(Result::unwrap).collect();
        let broken: Vec<(u64, String)> =
            loader.broken().iter().map(|broken| (broken.sample, broken.path.clone())).collect();
        (batches, broken)
    });
    assert_same(&runs[0].0, &runs[1].0);
    assert_eq!(runs[0].1, runs[1].1);
    let mut paths: Vec<&str> = runs[0].1.iter().map(|(_, path)| path.rsplit('/').next().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["003.jpg", "005.webp"]);
    let broken: Vec<u64> = runs[0].1.iter().map(|(sample, _)| *sample).collect();
    assert!(runs[0].0.iter().all(|batch| batch.samples.iter().all(|sample| !broken.contains(sample))));
}

#[test]
fn too_many_broken_images_end_the_run_with_the_last_ones_name() {
    let dir = super::folder(12);
    for name in ["class0/003.jpg", "class2/005.webp", "class1/004.png"] {
        fs::write(dir.path().join(name), b"nothing").unwrap();
    }
    let outcomes = [1, 4].map(|workers| {
        let settings = LoaderSettings { workers, ..settings() };
        let mut loader = Loader::new(open(dir.path()), settings, Position::default()).unwrap();
        let mut delivered = 0;
        let error = loop {
            match loader.next().unwrap() {
                Ok(_) => delivered += 1,
                Err(error) => break error.in_full(),
            }
        };
        assert!(loader.next().is_none());
        (delivered, error)
    });
    assert_eq!(outcomes[0], outcomes[1]);
    assert!(outcomes[0].1.contains("3 images or shards cannot be used, more than the 2 allowed"), "{}", outcomes[0].1);
}

#[test]
fn data_that_is_all_broken_ends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    (0..5).for_each(|i| fs::write(dir.path().join(format!("{i}.jpg")), b"nothing").unwrap());
    let settings = LoaderSettings { broken_limit: 1000, ..settings() };
    let mut loader = Loader::new(open(dir.path()), settings, Position::default()).unwrap();
    let error = loader.next().unwrap().unwrap_err();
    assert!(matches!(error, DataError::TooManyBroken { count: 5, limit: 4, .. }), "{error}");
}

#[test]
fn a_folder_that_vanishes_ends_the_run_with_its_name() {
    let dir = super::folder(12);
    let root = dir.path().to_path_buf();
    let mut loader =
        Loader::new(open(&root), LoaderSettings { epochs: u64::MAX, ..settings() }, Position::default()).unwrap();
    loader.next().unwrap().unwrap();
    // At once, as a share that is unmounted: while files are deleted one by one, they are missing from a folder that is there.
    let gone = tempfile::tempdir().unwrap();
    fs::rename(&root, gone.path().join("away")).unwrap();
    let error = loader.by_ref().find_map(Result::err).unwrap();
    assert!(matches!(error, DataError::Vanished { .. }), "{error}");
    assert!(error.in_full().contains(&root.display().to_string()));
    assert!(loader.next().is_none());
}

#[cfg(target_os = "linux")]
fn threads() -> usize {
    let names = fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("loader")).count()
}

/// Threads of other tests' loaders come and go in this process, so that the thread names say whose they are is not enough: a
/// loader of more threads than all others have together is made and dropped.
#[cfg(target_os = "linux")]
#[test]
fn a_dropped_loader_takes_its_threads_with_it() {
    let dir = super::folder(12);
    let settings = LoaderSettings { workers: 100, epochs: u64::MAX, ..settings() };
    let mut loader = Loader::new(open(dir.path()), settings, Position::default()).unwrap();
    loader.next().unwrap().unwrap();
    // A thread takes its name when it first runs, which can be later than the first batch.
    let begin = std::time::Instant::now();
    while threads() < 100 {
        assert!(begin.elapsed() < std::time::Duration::from_secs(60), "{} threads", threads());
        std::thread::yield_now();
    }
    drop(loader);
    assert!(threads() < 100, "{} threads are left", threads());
}

#[test]
fn memory_given_back_is_used_again() {
    let dir = super::folder(8);
    let settings = LoaderSettings { epochs: 20, prefetch: 1, ..settings() };
    let mut loader = Loader::new(open(dir.path()), settings, Position::default()).unwrap();
    let mut places = std::collections::BTreeSet::new();
    while let Some(batch) = loader.next() {
        let batch = batch.unwrap();
        places.insert(batch.images.as_ptr());
        loader.recycle(batch.images, batch.noise);
    }
    assert!(places.len() <= 3, "{} buffers for one batch ahead", places.len());
}

#[test]
fn settings_that_cannot_be_are_refused_with_the_reason() {
    let dir = super::folder(6);
    let refused = |settings: LoaderSettings, start: Position| {
        Loader::new(open(dir.path()), settings, start).unwrap_err().in_full()
    };
    let start = Position::default();
    assert!(refused(LoaderSettings { batch: 7, ..settings() }, start).contains("there are only 6 images"));
    assert!(refused(LoaderSettings { workers: 0, ..settings() }, start).contains("none may be 0"));
    assert!(
        refused(LoaderSettings { share: Share { rank: 2, world: 2 }, ..settings() }, start).contains("rank 2 of 2")
    );
    assert!(refused(settings(), Position { epoch: 0, batch: 2 }).contains("batch 2 of an epoch: it has 1"));
    let augment = Augment { scale: [0.0, 1.0], ..Augment::default() };
    assert!(refused(LoaderSettings { augment, ..settings() }, start).contains("scale"));
}

#[test]
fn a_damaged_shard_counts_as_a_broken_image_and_ends_nothing_before_the_limit() {
    let dir = super::folder(6);
    let shards = tempfile::tempdir().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all("", dir.path()).unwrap();
    let whole = builder.into_inner().unwrap();
    fs::write(shards.path().join("0.tar"), &whole).unwrap();
    let last = whole.windows(5).rposition(|name| name == b"ustar").unwrap();
    fs::write(shards.path().join("1.tar"), &whole[..last + 400]).unwrap();
    let dataset = open(shards.path());
    assert_eq!((dataset.len(), dataset.damaged().len()), (11, 1));
    let of = |broken_limit| LoaderSettings { broken_limit, epochs: 1, ..settings() };
    assert_eq!(all(&dataset, of(1), Position::default()).len(), 2);
    let error = Loader::new(dataset, of(0), Position::default()).unwrap_err().in_full();
    assert!(error.contains("1.tar") && error.contains("truncated"), "{error}");
}
