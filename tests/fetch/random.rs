//! Randomised runs: any mixture of faults, killed processes included, ends with the right bytes or a named error.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tec_zoo::fetch::{FetchError, Kind, Options, fetch_file};
use tec_zoo::zoo::Digest;

use super::server::{Answer, Ask, Fault, Server};
use super::{Home, full, go_on, kill, noise, options};

const FAULTS: [&str; 16] = [
    "drop",
    "stall",
    "slow drip",
    "truncated",
    "bit flip",
    "416",
    "403",
    "429 with Retry-After",
    "500",
    "length too long",
    "length too short",
    "no ranges",
    "changed ETag",
    "redirect loop",
    "wrong part",
    "gzip label",
];

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

fn spoil(kind: &str, ask: &Ask, body: &[u8], random: &mut Random) -> Answer {
    let honest = Answer::file(ask, body, "\"r\"");
    let at = random.below(honest.body.len() as u64) as usize;
    match kind {
        "drop" => honest.fault(Fault::Drop(at)),
        "stall" => honest.fault(Fault::Stall(at)),
        "slow drip" => honest.fault(Fault::Drip(1 + at % 50, Duration::from_millis(10))),
        "truncated" => {
            let claims = Some(Some(honest.body.len() as u64));
            Answer { body: honest.body[..at].to_vec(), claims, ..honest }
        }
        "bit flip" => {
            let mut spoilt = honest;
            spoilt.body[at] ^= 1 << random.below(8);
            spoilt
        }
        "416" => Answer::status(416),
        "403" => Answer::status(403),
        "429 with Retry-After" => Answer::status(429).header("Retry-After", &random.below(4).to_string()),
        "500" => Answer::status(500),
        "length too long" => Answer { claims: Some(Some(honest.body.len() as u64 + 9)), ..honest },
        "length too short" => Answer { claims: Some(Some(at as u64)), ..honest },
        "no ranges" => Answer::whole(body),
        "changed ETag" => Answer::file(ask, body, "\"other\""),
        "redirect loop" => Answer::status(302).header("Location", &format!("/{}", ask.path)),
        "wrong part" => Answer::file(
            &Ask { range: Some((1, 9)), path: String::new(), headers: Vec::new(), number: 0 },
            body,
            "\"r\"",
        ),
        _ => honest.header("Content-Encoding", "gzip"),
    }
}

/// One run: a server that commits each fault of `kinds` with a probability of `percent`.
fn run(seed: u64, kinds: &[&'static str], percent: u64) -> Result<(), FetchError> {
    let mut random = Random(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) | 1);
    for _ in 0..8 {
        random.below(2);
    }
    let body = Arc::new(noise(200_000 + random.below(1_000_000) as usize, seed));
    // Half know the hash, half only its beginning.
    let hashes = match seed % 2 {
        0 => full(&body),
        _ => vec![Digest::Sha256Prefix(super::sha256(&body)[..8].into())],
    };
    let (served, kinds) = (Arc::clone(&body), kinds.to_vec());
    let random = Mutex::new(random);
    let server = Server::start(move |ask| {
        let mut random = random.lock().unwrap();
        if random.below(100) >= percent {
            return Answer::file(ask, &served, "\"r\"");
        }
        let kind = kinds[random.below(kinds.len() as u64) as usize];
        spoil(kind, ask, &served, &mut random)
    });
    let home = Home::new();
    let options = Options { stall: Duration::from_millis(150), longest_wait: Duration::from_secs(1), ..options() };
    let result = fetch_file(&home.store, &server.url("weights.pth"), &hashes, None, &options, &mut go_on);
    assert!(server.requests() < 300, "seed {seed}: {} requests", server.requests());
    match result {
        Ok(blob) => {
            home.holds(&blob, &body);
            Ok(())
        }
        Err(error) => {
            home.is_empty();
            assert!(matches!(error.kind(), Kind::Network | Kind::Verification), "seed {seed}: {error}");
            // What can be resumed is; an honest server then completes it.
            let honest = Arc::clone(&body);
            let server = Server::start(move |ask| Answer::file(ask, &honest, "\"r\""));
            let blob =
                fetch_file(&home.store, &server.url("weights.pth"), &hashes, None, &options, &mut go_on).unwrap();
            assert!(std::fs::read(&blob.path).unwrap() == *body, "seed {seed}");
            Err(error)
        }
    }
}

/// Runs `seeds` on a few threads; how many ended whole, with a network error, with a verification error.
fn runs(seeds: std::ops::Range<u64>, kinds: &[&'static str], percent: u64) -> [usize; 3] {
    let (next, ends) = (AtomicUsize::new(seeds.start as usize), Mutex::new([0; 3]));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst) as u64;
                    if seed >= seeds.end {
                        return;
                    }
                    let end = match run(seed, kinds, percent) {
                        Ok(()) => 0,
                        Err(error) if error.kind() == Kind::Network => 1,
                        Err(_) => 2,
                    };
                    ends.lock().unwrap()[end] += 1;
                }
            });
        }
    });
    ends.into_inner().unwrap()
}

#[test]
fn any_mixture_of_faults_ends_right_or_with_a_name() {
    let ends = runs(0..24, &FAULTS, 25);
    assert_eq!(ends.iter().sum::<usize>(), 24);
    assert!(ends[0] > 0, "none was ever whole");
}

/// The table of docs/reliability.md.
#[test]
#[ignore = "several minutes: `cargo test --test all fetch::random -- --ignored --nocapture`"]
fn the_table_of_hundreds_of_runs() {
    let mut table = BTreeMap::new();
    for (index, kind) in FAULTS.into_iter().enumerate() {
        let first = 1000 * (index as u64 + 1);
        table.insert(kind, runs(first..first + 16, &[kind], 40));
    }
    table.insert("any of them, each answer in four", runs(100_000..100_100, &FAULTS, 25));
    table.insert("any of them, two answers in three", runs(200_000..200_060, &FAULTS, 66));
    println!("| fault | runs | whole | named network error | named verification error | wrong bytes |");
    println!("|---|---|---|---|---|---|");
    for (kind, [whole, network, wrong]) in table {
        println!("| {kind} | {} | {whole} | {network} | {wrong} | 0 |", whole + network + wrong);
    }
    let body = Arc::new(noise(kill::SIZE, 99));
    let mut random = Random(99);
    let mut again: Vec<u64> = (0..40).map(|_| kill::killed_at(random.below(14 << 20) + (1 << 20), &body)).collect();
    again.sort_unstable();
    let percent = |bytes: u64| 100.0 * bytes as f64 / body.len() as f64;
    println!("SIGKILL at a random moment: {} runs, all whole after the next start", again.len());
    assert!(again[39] < body.len() as u64 / 50);
    println!("fetched again: median {:.2} %, most {:.2} %", percent(again[20]), percent(again[39]));
}
