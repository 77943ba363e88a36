//! Processes find their place, meet, sum gradients, and end together.
//!
//! What needs several processes is ignored here and started by `tests/distributed/run`.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use tec_zoo::train::distributed::{DistributedError, Launcher, Meeting, Place, SHARED, World};

use crate::words::InFull;

fn place(variables: &[(&str, &str)]) -> Result<Place, DistributedError> {
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    Place::read(|name| variables.get(name).map(ToString::to_string))
}

#[test]
fn without_a_launcher_a_process_is_alone() {
    assert_eq!(place(&[]).unwrap(), Place::alone());
    // What an allocation leaves in the environment of a script makes no world.
    assert_eq!(place(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]).unwrap(), Place::alone());
}

#[test]
fn every_launcher_says_where_a_process_stands() {
    let torchrun =
        [("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "7")];
    let mpirun = [
        ("OMPI_COMM_WORLD_RANK", "1"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
    ];
    let hydra = [("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", "0")];
    let srun = [
        ("SLURM_PROCID", "3"),
        ("SLURM_STEP_NUM_TASKS", "4"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_STEP_NODELIST", "gpu[03-04,7]"),
    ];
    for (variables, launcher, rank, size, local, meeting) in [
        (&torchrun[..], Launcher::Torchrun, 5, 8, 1, Some("a:7")),
        (&mpirun[..], Launcher::Mpirun, 1, 2, 1, Some("127.0.0.1:29500")),
        (&hydra[..], Launcher::Mpirun, 1, 2, 0, None),
        (&srun[..], Launcher::Srun, 3, 4, 1, Some("gpu03:29500")),
    ] {
        let expected = Place { rank, size, local_rank: local, meeting: meeting.map(Into::into), launcher };
        assert_eq!(place(variables).unwrap(), expected);
    }
}

#[test]
fn the_first_node_of_a_list_is_where_rank_0_is() {
    for (list, first) in [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("a,b[1-2]", "a"),
        ("gpu[01-04]", "gpu01"),
        ("gpu[7,9]-ib", "gpu7-ib"),
        ("gpu[1-2],cpu[1-2]", "gpu1"),
        ("rack[3-4]n[5,6]", "rack3n5"),
    ] {
        let variables = [
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_STEP_NODELIST", list),
        ];
        assert_eq!(place(&variables).unwrap().meeting, Some(format!("{first}:29500")), "{list}");
    }
    let broken = [
        ("SLURM_PROCID", "0"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("SLURM_LOCALID", "0"),
        ("SLURM_STEP_NODELIST", "gpu[1"),
    ];
    assert_eq!(place(&broken).unwrap().meeting, None);
}

#[test]
fn the_port_of_torchruns_own_store_is_left_to_it() {
    let variables = [
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "0"),
        ("MASTER_ADDR", "::1"),
        ("MASTER_PORT", "29400"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
    ];
    assert_eq!(place(&variables).unwrap().meeting.unwrap(), "[::1]:29401");
}

#[test]
fn variables_that_make_no_sense_are_refused_by_name() {
    for (variables, said) in [
        (&[("RANK", "0")][..], "`RANK` is set, but not `WORLD_SIZE`"),
        (&[("RANK", "0"), ("WORLD_SIZE", "2")], "`RANK` is set, but not `LOCAL_RANK`"),
        (&[("RANK", "2"), ("WORLD_SIZE", "2")], "`RANK=2` is no rank among `WORLD_SIZE=2`"),
        (&[("RANK", "0"), ("WORLD_SIZE", "0")], "`RANK=0` is no rank among `WORLD_SIZE=0`"),
        (&[("RANK", "-1"), ("WORLD_SIZE", "2")], "`RANK=-1` is not what a launcher would set"),
        (
            &[("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_PORT", "0")],
            "`MASTER_PORT=0` is not what a launcher would set",
        ),
    ] {
        let error = place(variables).unwrap_err().in_full();
        assert!(error.starts_with(said), "{error}");
    }
}

#[test]
fn a_process_on_its_own_keeps_its_values() {
    let world = World::join(Place::alone(), &Device::Cpu).unwrap();
    let gradient = Tensor::arange(0f32, 100.0, &Device::Cpu).unwrap();
    let mut sum = world.reduction(&gradient).unwrap();
    sum.start(40).unwrap();
    assert!(matches!(sum.start(41), Err(DistributedError::Order { from: 41, open: 40 })));
    sum.finish().unwrap();
    assert_eq!(gradient.to_vec1::<f32>().unwrap(), (0..100).map(|i| i as f32).collect::<Vec<_>>());
    let half = gradient.to_dtype(DType::BF16).unwrap();
    assert!(matches!(world.reduction(&half), Err(DistributedError::Gradient { .. })));
    let (mut values, mut bytes) = ([2.5], *b"own");
    world.sum(&mut values).unwrap();
    world.broadcast(&mut bytes).unwrap();
    assert_eq!((values, &bytes), ([2.5], b"own"));
    world.leave().unwrap();
}

#[cfg(not(feature = "mpi"))]
#[test]
fn a_build_without_mpi_does_not_start_two_runs_that_know_nothing_of_each_other() {
    let two = Place { size: 2, launcher: Launcher::Mpirun, ..Place::alone() };
    let error = World::join(two, &Device::Cpu).err().unwrap().in_full();
    assert!(error.contains("hint: build with the feature `mpi`"), "{error}");
}

/// A world of `size` on a port that is free now.
fn world(size: usize) -> Vec<Place> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = |rank| Place { rank, size, meeting: Some(format!("127.0.0.1:{port}")), ..Place::alone() };
    (0..size).map(place).collect()
}

const SOON: Duration = Duration::from_secs(20);

/// Every rank's meeting.
fn met(places: &[Place]) -> Vec<Meeting> {
    std::thread::scope(|scope| {
        let join = |place: &Place| Meeting::join(place, [place.rank as u8 + 1; SHARED], SOON).unwrap();
        let threads: Vec<_> = places.iter().map(|place| scope.spawn(move || join(place))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn everyone_learns_what_rank_0_brings() {
    let meetings = met(&world(4));
    assert!(meetings.iter().all(|meeting| *meeting.shared() == [1; SHARED] && meeting.lost().is_none()));
    std::thread::scope(|scope| {
        for meeting in meetings {
            scope.spawn(|| meeting.leave());
        }
    });
}

#[test]
fn who_is_gone_without_a_goodbye_is_missed_by_all() {
    let mut meetings = met(&world(3));
    let (tell, told) = channel();
    for (rank, meeting) in meetings.iter().enumerate() {
        let tell = tell.clone();
        meeting.on_loss(move || tell.send(rank).unwrap());
    }
    drop(meetings.remove(1));
    let mut missed: Vec<_> = (0..2).map(|_| told.recv_timeout(SOON).unwrap()).collect();
    missed.sort_unstable();
    assert_eq!(missed, [0, 2]);
    assert_eq!((meetings[0].lost(), meetings[1].lost()), (Some(1), Some(0)));
}

#[test]
fn who_says_goodbye_is_not_missed() {
    let mut meetings = met(&world(3));
    meetings.remove(2).leave();
    std::thread::sleep(Duration::from_millis(200));
    assert!(meetings.iter().all(|meeting| meeting.lost().is_none()));
}

#[test]
fn a_stranger_at_the_port_is_turned_away() {
    let places = world(2);
    let address = places[0].meeting.clone().unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| Meeting::join(&places[0], [7; SHARED], SOON).unwrap());
        let mut stranger = loop {
            if let Ok(stranger) = TcpStream::connect(&address) {
                break stranger;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        stranger.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        assert_eq!(answer, b"");
        let second = Meeting::join(&places[1], [8; SHARED], SOON).unwrap();
        assert_eq!(second.shared(), &[7; SHARED]);
        drop(first.join().unwrap());
    });
}

#[test]
fn who_does_not_come_is_named() {
    let places = world(3);
    let error = Meeting::join(&places[0], [0; SHARED], Duration::from_millis(50)).unwrap_err().in_full();
    assert!(error.contains("ranks [1, 2] of 3 did not come"), "{error}");
    assert!(Meeting::join(&places[1], [0; SHARED], Duration::from_millis(50)).is_err());
    let nowhere = Place { meeting: None, ..places[0].clone() };
    assert!(matches!(Meeting::join(&nowhere, [0; SHARED], SOON), Err(DistributedError::NoMeetingPoint { size: 3 })));
}

#[cfg(feature = "mpi")]
mod under_mpirun {
    use std::ops::ControlFlow;
    use std::path::Path;

    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    use tec_zoo::model::{Canonical, ParameterSpec, vit_parameters};
    use tec_zoo::train::{MicroBatch, Recipe, Step, Student};

    use super::*;

    fn joined() -> World {
        let place = Place::read(|name| std::env::var(name).ok()).unwrap();
        assert!(place.size > 1, "to be started by tests/distributed/run");
        World::join(place, &Device::Cpu).unwrap()
    }

    /// Every value is small and whole, so every order of summation gives the same.
    #[test]
    #[ignore = "for tests/distributed/run"]
    fn sums_are_the_same_everywhere_and_overlap_with_what_fills_them() {
        let world = joined();
        let (rank, size) = (world.rank(), world.size());
        let value = |rank: usize, i: usize| ((i * 7 + rank * 3) % 1000) as f32;
        // Not a multiple of any bucket, several buckets, and many small steps as a backward takes them.
        let n = 3_500_007;
        for round in 0..3 {
            let gradient = Tensor::full(f32::NAN, n, &Device::Cpu).unwrap();
            let mut sum = world.reduction(&gradient).unwrap();
            let mut from = n;
            while from > 0 {
                let next = from.saturating_sub(123_457);
                let part: Vec<f32> = (next..from).map(|i| value(rank + round, i)).collect();
                gradient.slice_set(&Tensor::new(part, &Device::Cpu).unwrap(), 0, next).unwrap();
                sum.start(next).unwrap();
                from = next;
            }
            sum.finish().unwrap();
            let expected = (0..n).map(|i| (0..size).map(|rank| value(rank + round, i)).sum::<f32>());
            assert!(gradient.to_vec1::<f32>().unwrap().into_iter().eq(expected), "round {round}");
        }
        let mut values = [rank as f64, 1.0];
        world.sum(&mut values).unwrap();
        assert_eq!(values, [(0..size).sum::<usize>() as f64, size as f64]);
        let mut bytes = vec![rank as u8 + 9; 10_000_000];
        world.broadcast(&mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 9));
        world.leave().unwrap();
    }

    /// Numbers in ±1 that depend on their place alone.
    fn wave(seed: usize, len: usize) -> impl Iterator<Item = f32> {
        (0..len).map(move |i| ((i * 7 + seed * 101) as f32 * 0.37).sin())
    }

    /// A base of small random weights.
    fn base(dir: &Path) -> Canonical {
        let config = serde_json::json!({"tec_zoo": {
            "format": 1, "family": "mae", "feature": "cls",
            "vit": {
                "image_size": [64, 64], "patch_size": 16, "width": 64, "depth": 3, "heads": 4, "mlp_width": 128,
                "norm_eps": 1e-6, "activation": "gelu-erf", "final_norm": true,
                "position": {"kind": {"type": "learned"}, "resample": {"rule": "size"}},
            },
            "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop_pct": 0.875},
            "provenance": {
                "source_file": "random", "source_sha256": "", "source_bytes": 0, "container": "safetensors",
                "converter": "timm", "tool": "test"
            },
            "licence": {"spdx": "unknown"},
        }});
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let specs = vit_parameters(&Canonical::read_config(dir).unwrap().vit);
        let tensors: Vec<(ParameterSpec, Vec<u8>)> = specs
            .into_iter()
            .enumerate()
            .map(|(seed, spec)| {
                let one = if spec.name.contains("norm") && spec.name.ends_with("weight") { 1.0 } else { 0.0 };
                let bytes = wave(seed, spec.elements()).flat_map(|x| (one + 0.1 * x).to_le_bytes()).collect();
                (spec, bytes)
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(spec, bytes)| (spec.name.as_str(), TensorView::new(Dtype::F32, spec.shape.clone(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
        Canonical::open(dir).unwrap()
    }

    /// Both targets share a decoder of several messages: its gradient is whole after the pass back through both, and must not
    /// be sent before.
    #[test]
    #[ignore = "for tests/distributed/run"]
    fn the_gradient_of_a_parameter_used_twice_is_sent_after_both_uses() {
        let world = joined();
        let dir = tempfile::tempdir().unwrap();
        let base = base(dir.path());
        let recipe = Recipe::load("nano", &["method.decoder.width=512".to_owned()]).unwrap();
        let student = Student::of(&base.config().vit);
        let batch = |rank: usize| MicroBatch {
            count: 2,
            images: wave(rank + 1000, 2 * 3 * 64 * 64).collect(),
            noise: wave(rank + 2000, 2 * 16).map(|x| 0.5 + 0.5 * x).collect(),
        };
        let gradient = |world: &World, batches: &[MicroBatch]| {
            let settings = recipe.step_settings();
            let mut step = Step::new(Some(&base), student.vit().unwrap(), settings, &Device::Cpu).unwrap();
            let decoder: usize = step
                .parameters()
                .slots()
                .iter()
                .map(|slot| slot.spec.name.starts_with("decoder_blocks.") as usize * slot.padded)
                .sum();
            assert!(decoder > 4 << 20, "a decoder of {decoder} values is sent in one piece");
            let mut update = step.update(batches.len(), world).unwrap();
            for batch in batches {
                update.add(batch, &mut |_| ControlFlow::Continue(())).unwrap();
            }
            update.gradients().unwrap();
            step.parameters().gradients().to_vec1::<f32>().unwrap()
        };
        let together = gradient(&world, &[batch(world.rank())]);
        let alone = World::join(Place::alone(), &Device::Cpu).unwrap();
        let all: Vec<MicroBatch> = (0..world.size()).map(batch).collect();
        let alone = gradient(&alone, &all);
        let largest = alone.iter().fold(0_f32, |most, value| most.max(value.abs()));
        let worst = together.iter().zip(&alone).fold(0_f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(worst <= 1e-5 * largest, "{worst} of {largest}");
        world.leave().unwrap();
    }

    /// Rank 0 must be ended by the loss; the script sees to it that nobody survives.
    #[test]
    #[ignore = "for tests/distributed/run"]
    fn the_last_rank_dies() {
        let world = joined();
        world.barrier().unwrap();
        if world.rank() + 1 == world.size() {
            std::process::abort();
        }
        let lost = world.sum(&mut [0.0]);
        eprintln!("SURVIVED: {lost:?}");
    }

    /// As a run does that fails with an error of its own.
    #[test]
    #[ignore = "for tests/distributed/run"]
    fn the_last_rank_aborts() {
        let world = joined();
        if world.rank() + 1 == world.size() {
            world.abort(3);
        }
        let lost = world.sum(&mut [0.0]);
        eprintln!("SURVIVED: {lost:?}");
    }
}
