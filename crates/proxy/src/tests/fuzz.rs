//! The fuzzer's targets over their committed seeds, and over what a few changes make of these.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use super::parser::generator::Dice;
use crate::fuzz::{self, TARGETS, shown};

/// Changed inputs of each target: a second without optimisation. `cargo x fuzz` tries as many in the time of a blink.
const CASES: u64 = 1_000;

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.expect("it can be listed").path())
        .collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("it can be read")).collect()
}

fn check(target: &str) {
    let seeds = seeds(target);
    assert!(!seeds.is_empty());
    let run = |input: &[u8]| {
        let outcome = catch_unwind(AssertUnwindSafe(|| fuzz::run(target, input)));
        outcome.unwrap_or_else(|panic| {
            eprintln!("{target}: {}", shown(input));
            resume_unwind(panic)
        });
    };
    seeds.iter().for_each(|seed| run(seed));
    for case in 0..CASES {
        let mut dice = Dice::new(case);
        let mut input = seeds[dice.below(seeds.len())].clone();
        if dice.below(4) == 0 {
            let other = &seeds[dice.below(seeds.len())];
            let at = dice.below(input.len() + 1);
            input.splice(at.., other[dice.below(other.len() + 1)..].iter().copied());
        }
        dice.mutate(&mut input);
        run(&input);
    }
}

/// One test for each, so that they run at once.
macro_rules! tests {
    ($($test:ident: $target:literal,)*) => {
        $(#[test]
        fn $test() {
            check($target);
        })*

        #[test]
        fn every_target_is_tried() {
            let tried = [$($target),*];
            assert_eq!(TARGETS.map(|(name, _)| name), tried);
        }
    };
}

tests! {
    requests_are_read_as_hyper_reads_them: "request",
    answers_are_read_as_hyper_reads_them: "response",
    chunked_bodies_have_one_reading: "chunked",
    frames_of_http2_do_no_harm: "http2",
    frames_of_websockets_have_one_reading: "websocket",
    questions_to_dns_are_answered_or_not: "dns",
    replays_are_read_or_refused: "replay",
    wishes_for_machines_are_bounded: "aim",
    wishes_for_compression_have_one_reading: "coding",
}
