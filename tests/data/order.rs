//! The order of an epoch.

use std::collections::BTreeSet;

use tec_zoo::data::{EpochOrder, Share};

fn order(len: u64, seed: u64, epoch: u64) -> Vec<u64> {
    let order = EpochOrder::new(len, seed, epoch);
    (0..len).map(|place| order.sample(place)).collect()
}

#[test]
fn every_epoch_shows_every_sample_once() {
    for len in [1, 2, 3, 7, 64, 100, 4096, 4097, 70_001] {
        let mut all = order(len, 5, 9);
        all.sort_unstable();
        assert!(all.iter().copied().eq(0..len), "{len}");
    }
}

#[test]
fn orders_differ_by_seed_and_epoch_and_by_nothing_else() {
    assert_eq!(order(1000, 1, 1), order(1000, 1, 1));
    assert_ne!(order(1000, 1, 1), order(1000, 1, 2));
    assert_ne!(order(1000, 1, 1), order(1000, 2, 1));
}

/// Over many epochs, each of the 4! orders of four samples comes up about as often as the others, and so does each sample at
/// each place of a longer order.
#[test]
fn orders_are_as_good_as_random() {
    let mut counts = std::collections::BTreeMap::<Vec<u64>, i32>::new();
    for epoch in 0..24_000 {
        *counts.entry(order(4, 7, epoch)).or_default() += 1;
    }
    // 1000 ± 31 each.
    assert_eq!(counts.len(), 24);
    assert!(counts.values().all(|count| (count - 1000).abs() < 155), "{counts:?}");

    let mut places = vec![[0; 50]; 50];
    let mut neighbours = 0;
    for epoch in 0..10_000 {
        let order = order(50, 8, epoch);
        order.iter().enumerate().for_each(|(place, &sample)| places[place][sample as usize] += 1);
        neighbours += order.windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
    }
    // 200 ± 14 each, of 2500; one pair a sample apart an epoch.
    assert!(places.iter().flatten().all(|&count: &i32| (count - 200).abs() < 75), "{places:?}");
    assert!((9_500..10_300).contains(&neighbours), "{neighbours}");
}

#[test]
fn ranks_share_an_epoch_without_overlap() {
    let (len, world, batch) = (103, 4, 5);
    let order = EpochOrder::new(len, 1, 0);
    let batches = Share { rank: 0, world }.batches(len, batch);
    // ⌈103 / 4⌉ = 26 for each, so 5 batches, and one sample left over.
    assert_eq!(batches, 5);
    let mut seen = BTreeSet::new();
    for rank in 0..world {
        for at in 0..batches * batch {
            assert!(seen.insert(order.sample(Share { rank, world }.place(at))), "rank {rank}, sample {at}");
        }
    }
    assert_eq!(seen.len() as u64, world * batches * batch);
}

#[test]
fn batches_of_all_ranks_are_the_batch_of_one() {
    let order = EpochOrder::new(64, 1, 3);
    for batch in 0..4 {
        let one: BTreeSet<u64> =
            (0..16).map(|at| order.sample(Share { rank: 0, world: 1 }.place(batch * 16 + at))).collect();
        let place = |rank, at| Share { rank, world: 4 }.place(batch * 4 + at);
        let four = (0..4).flat_map(|rank| (0..4).map(move |at| place(rank, at)));
        assert_eq!(one, four.map(|place| order.sample(place)).collect());
    }
}

#[test]
fn a_share_starts_over_where_the_epoch_is_too_short() {
    let order = EpochOrder::new(7, 1, 0);
    let last = Share { rank: 1, world: 2 };
    assert_eq!(last.batches(7, 4), 1);
    assert_eq!(order.sample(last.place(3)), order.sample(0));
}
