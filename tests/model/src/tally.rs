//! What was done, for the summary.

use std::collections::BTreeMap;
use std::fmt;

use crate::call::{Answer, Call};

/// Counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) sequences: u64,
    pub(crate) visits: u64,
    /// Ends of server or proxy between two calls.
    pub(crate) kills: u64,
    /// Ends of the server during a call.
    pub(crate) kills_during: u64,
    /// By name of the call: granted, refused, lost.
    calls: BTreeMap<String, [u64; 3]>,
}

impl Tally {
    pub(crate) fn count(&mut self, call: &Call, answer: &Answer) {
        let text = format!("{call:?}");
        let name = match call {
            Call::Wish { wish, .. } => format!("{wish:?}"),
            _ => text.split([' ', '{']).next().unwrap_or_default().to_owned(),
        };
        let at = match answer {
            Answer::Refused { .. } => 1,
            Answer::Lost => 2,
            _ => 0,
        };
        self.calls.entry(name).or_default()[at] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.sequences += other.sequences;
        self.visits += other.visits;
        self.kills += other.kills;
        self.kills_during += other.kills_during;
        for (name, counts) in &other.calls {
            let sum = self.calls.entry(name.clone()).or_default();
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [mut granted, mut refused, mut lost] = [0; 3];
        for (name, [a, b, c]) in &self.calls {
            writeln!(f, "{name:<16} {a:>6} granted {b:>6} refused {c:>5} lost")?;
            (granted, refused, lost) = (granted + a, refused + b, lost + c);
        }
        let Self { sequences, visits, kills, kills_during, .. } = self;
        write!(
            f,
            "{sequences} sequences: {granted} calls granted, {refused} refused, {lost} lost, {visits} visits, \
             {kills} kills between calls, {kills_during} during"
        )
    }
}
