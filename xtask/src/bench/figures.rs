//! Medians, and one way to print them.

use std::time::Duration;

/// What one contender did, a value per round.
#[derive(Debug, Default, Clone)]
pub(crate) struct Series {
    /// Any unit; the caller names it when printing.
    values: Vec<f64>,
}

impl Series {
    /// Adds the value of a round.
    pub(crate) fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// Adds a length of time in milliseconds.
    pub(crate) fn push_ms(&mut self, time: Duration) {
        self.push(time.as_secs_f64() * 1000.0);
    }

    /// Adds the values of another series.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.values.append(&mut other.values);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// The value below which this share of the rounds is.
    pub(crate) fn at(&self, share: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        let index = (last as f64 * share).round() as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }

    /// The median.
    pub(crate) fn median(&self) -> f64 {
        self.at(0.5)
    }

    /// Prints median, nine-tenths and count.
    pub(crate) fn print(&self, name: &str, unit: &str) {
        let (median, p90, count) = (self.median(), self.at(0.9), self.values.len());
        println!("{name:<28} median {median:>9.2} {unit}   p90 {p90:>9.2} {unit}   n {count}");
    }
}

/// Prints a ratio beside its limit; whether it holds.
pub(crate) fn holds(name: &str, ratio: f64, limit: f64) -> bool {
    let good = ratio <= limit;
    let word = if good { "holds" } else { "DOES NOT HOLD" };
    println!("{name:<28} {ratio:.2}x, promised at most {limit:.2}x: {word}\n");
    good
}

/// Prints what the figures depend on.
pub(crate) fn print_machine() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{cpus} CPUs, Linux {}", read("/proc/sys/kernel/osrelease").trim());
    let load = read("/proc/loadavg");
    let now: f64 = load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_default();
    // Builds and other tests beside us make every figure noise.
    let warning = if 0.5 < now { " (not quiet: only ratios mean something)" } else { "" };
    println!("load {now}{warning}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_an_empty_series_has_none() {
        let mut series = Series::default();
        assert!(series.median().is_nan());
        for value in [5.0, 1.0, 3.0] {
            series.push(value);
        }
        assert!((series.median() - 3.0).abs() < f64::EPSILON);
    }
}
