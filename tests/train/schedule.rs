//! The learning rate of MAE's `lr_sched.py`.

use tec_zoo::train::{Recipe, Schedule};

/// From Python: `peak * e / 40 if e < 40 else peak * 0.5 * (1 + math.cos(math.pi * (e - 40) / (300 - 40)))` at
/// e = s // 312 + (s % 312) / 312, with peak = 1.5e-4 * 4096 / 256 and 312 = 1281167 // 4096.
const PUBLISHED: [(u64, f64, f64); 7] = [
    (0, 0.0, 0.0),
    (1, 0.003205128205128205, 1.923076923076923e-07),
    (12479, 39.99679487179487, 0.002399807692307692),
    (12480, 40.0, 0.0024),
    (12481, 40.00320512820513, 0.002399999999100098),
    (46800, 150.0, 0.0014871787971450692),
    (93599, 299.99679487179486, 8.99901753115273e-13),
];

#[test]
fn rates_of_the_300_epoch_recipe_on_imagenet_are_the_formulas() {
    let schedule = Schedule::new(&Recipe::load("tec-mae-vitb-300ep", &[]).unwrap(), 1_281_167).unwrap();
    assert_eq!((schedule.steps_per_epoch(), schedule.steps()), (312, 93_600));
    for (step, epoch, lr) in PUBLISHED {
        assert!((schedule.epoch(step) - epoch).abs() < 1e-12, "{step}: {}", schedule.epoch(step));
        // One unit in the last place of the peak: near the end, 1 + cos cancels.
        assert!((schedule.lr(step) - lr).abs() < 5e-19, "{step}: {} is not {lr}", schedule.lr(step));
    }
}

/// peak 1e-3, minimum 1e-5, 2.5 warm-up epochs of 10, three updates each.
#[test]
fn a_minimum_and_a_fractional_warm_up_are_kept_to() {
    let sets = ["base_lr=8e-3", "min_lr=1e-5", "warmup_epochs=2.5", "epochs=10"];
    let sets = sets.map(|set| format!("optimizer.{set}"));
    let schedule = Schedule::new(&Recipe::load("nano", &sets).unwrap(), 100).unwrap();
    let golden = [
        (0, 0.0),
        (3, 4e-4),
        (7, 0.0009333333333333334),
        (8, 0.000998794204878613),
        (20, 0.00041904415205486944),
        (29, 1.4817305972922726e-05),
    ];
    for (step, lr) in golden {
        assert!((schedule.lr(step) - lr).abs() < 5e-19, "{step}: {} is not {lr}", schedule.lr(step));
    }
}

#[test]
fn less_than_one_batch_is_no_schedule() {
    assert!(Schedule::new(&Recipe::load("nano", &[]).unwrap(), 31).is_none());
    assert!(Schedule::new(&Recipe::load("nano", &[]).unwrap(), 32).is_some());
}
