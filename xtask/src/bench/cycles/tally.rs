//! What came out of thousands of requests.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::figures::Series;
use super::way::Way;
use super::wire::Wait;

/// Of one caller, or of all.
#[derive(Default)]
pub(super) struct Tally(BTreeMap<Way, Row>);

/// Of one way to ask.
#[derive(Default)]
struct Row {
    answers: usize,
    /// What was in flight inside something that was killed, by that.
    excused: BTreeMap<&'static str, usize>,
    /// What happened that is nobody's failure, by what it is called.
    notes: BTreeMap<String, usize>,
    faults: BTreeMap<&'static str, usize>,
    times: BTreeMap<Wait, Series>,
}

impl Tally {
    fn row(&mut self, way: Way) -> &mut Row {
        self.0.entry(way).or_default()
    }

    /// An answer.
    pub(super) fn answer(&mut self, way: Way, took: Duration, wait: Wait) {
        let row = self.row(way);
        row.answers += 1;
        row.times.entry(wait).or_default().push_ms(took);
    }

    /// No answer, because of what was killed.
    pub(super) fn excuse(&mut self, way: Way, cause: &'static str) {
        *self.row(way).excused.entry(cause).or_default() += 1;
    }

    /// Something that may be.
    pub(super) fn note(&mut self, way: Way, what: String) {
        *self.row(way).notes.entry(what).or_default() += 1;
    }

    /// Something that must not be, with everything that is known about it; told at once.
    pub(super) fn fault(&mut self, way: Way, what: &'static str, text: &str) {
        *self.row(way).faults.entry(what).or_default() += 1;
        println!("FAULT, {what}: {text}");
    }

    /// How many faults there were.
    pub(super) fn faults(&self) -> usize {
        self.0.values().flat_map(|row| row.faults.values()).sum()
    }

    /// Adds another caller's.
    pub(super) fn add(&mut self, other: Self) {
        for (way, other) in other.0 {
            let row = self.row(way);
            row.answers += other.answers;
            add_all(&mut row.excused, other.excused);
            add_all(&mut row.notes, other.notes);
            add_all(&mut row.faults, other.faults);
            row.add_times(other.times);
        }
    }

    /// Prints everything.
    pub(super) fn print(&self) {
        println!(
            "\n{:<24} {:>8} {:>8} {:>8} {:>7}   {:>8} {:>8} {:>8}   {:>8} {:>8}",
            "",
            "answers",
            "held",
            "excused",
            "faults",
            "held p50",
            "p99",
            "max ms",
            "awake",
            "p99 ms"
        );
        for (way, row) in &self.0 {
            row.print(way.name());
        }
        let mut all = Row::default();
        for row in self.0.values() {
            all.answers += row.answers;
            add_all(&mut all.excused, row.excused.clone());
            add_all(&mut all.faults, row.faults.clone());
            all.add_times(row.times.clone());
        }
        all.print("all");
        for (wait, series) in &all.times {
            let name = match wait {
                Wait::None => "awake, or they do not say",
                Wait::Thaw => "held for a thaw",
                Wait::Start => "held for a start",
                Wait::Other => "held for a place",
            };
            let [median, most, max] = [0.5, 0.99, 1.0].map(|share| series.at(share));
            let count = series.len();
            println!("{name:<24} {count:>8}   p50 {median:.2}, p99 {most:.2}, max {max:.2} ms");
        }
        for (way, row) in &self.0 {
            let excused = row
                .excused
                .iter()
                .map(|(cause, count)| (format!("excused: in flight in a proxy, {cause}"), *count));
            let notes = row.notes.iter().map(|(what, count)| (what.clone(), *count));
            let faults = row.faults.iter().map(|(what, count)| (format!("FAULT: {what}"), *count));
            for (what, count) in excused.chain(notes).chain(faults) {
                println!("{:<24} {count:>8} {what}", way.name());
            }
        }
    }
}

impl Row {
    fn add_times(&mut self, times: BTreeMap<Wait, Series>) {
        for (wait, series) in times {
            self.times.entry(wait).or_default().append(series);
        }
    }

    fn print(&self, name: &str) {
        let (mut held, mut awake) = (Series::default(), Series::default());
        for (wait, series) in &self.times {
            let which = if *wait == Wait::None { &mut awake } else { &mut held };
            which.append(series.clone());
        }
        println!(
            "{name:<24} {:>8} {:>8} {:>8} {:>7}   {:>8.2} {:>8.2} {:>8.2}   {:>8.2} {:>8.2}",
            self.answers,
            held.len(),
            self.excused.values().sum::<usize>(),
            self.faults.values().sum::<usize>(),
            held.median(),
            held.at(0.99),
            held.at(1.0),
            awake.median(),
            awake.at(0.99),
        );
    }
}

fn add_all<K: Ord>(sums: &mut BTreeMap<K, usize>, more: BTreeMap<K, usize>) {
    for (key, count) in more {
        *sums.entry(key).or_default() += count;
    }
}
