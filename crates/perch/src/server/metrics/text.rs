//! The text that Prometheus reads (exposition format 0.0.4).

use std::fmt::Write;

use perch_core::ledger::Histogram;

/// What a family of samples is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Metrics as they are written, family by family.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// Begins a family; its samples follow at once.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// One sample.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.line(format_args!("{name}{} {value}", written(labels)));
    }

    /// One that may be below zero.
    pub(super) fn signed(&mut self, name: &str, labels: &[(&str, &str)], value: i64) {
        self.line(format_args!("{name}{} {value}", written(labels)));
    }

    /// All samples of one histogram of a family, in seconds.
    pub(super) fn histogram(&mut self, name: &str, labels: &[(&str, &str)], it: &Histogram) {
        for (bound, count) in it.up_to() {
            let bound = seconds(bound);
            let labels = [labels, &[("le", bound.as_str())]].concat();
            self.sample(&format!("{name}_bucket"), &labels, count);
        }
        let all = [labels, &[("le", "+Inf")]].concat();
        self.sample(&format!("{name}_bucket"), &all, it.count());
        let sum = seconds(it.sum_micros());
        self.line(format_args!("{name}_sum{} {sum}", written(labels)));
        self.sample(&format!("{name}_count"), labels, it.count());
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _written = writeln!(self.0, "{line}").is_ok();
    }
}

fn seconds(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn written(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let pair = |(name, value): &(&str, &str)| format!("{name}=\"{}\"", escaped(value));
    format!("{{{}}}", labels.iter().map(pair).collect::<Vec<_>>().join(","))
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_prometheus_reads_them() {
        let mut text = Text::default();
        text.family("a_total", Kind::Counter, "how many");
        text.sample("a_total", &[], 3);
        text.sample("a_total", &[("app", "x\"y\\\nz"), ("how", "stop")], 4);
        text.family("b", Kind::Gauge, "how much");
        text.signed("b", &[], -5);
        let expected = "# HELP a_total how many\n# TYPE a_total counter\na_total 3\n\
                        a_total{app=\"x\\\"y\\\\\\nz\",how=\"stop\"} 4\n\
                        # HELP b how much\n# TYPE b gauge\nb -5\n";
        assert_eq!(text.into_string(), expected);
    }

    #[test]
    fn a_histogram_is_in_seconds_and_its_last_part_has_all() {
        let mut text = Text::default();
        let mut lengths = Histogram::default();
        [150, 90_000_000].into_iter().for_each(|it| lengths.add(it));
        text.histogram("c_seconds", &[("from", "suspended")], &lengths);
        let text = text.into_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "c_seconds_bucket{from=\"suspended\",le=\"0.0001\"} 0");
        assert_eq!(lines[1], "c_seconds_bucket{from=\"suspended\",le=\"0.00025\"} 1");
        let end = &lines[lines.len() - 4..];
        assert_eq!(end[0], "c_seconds_bucket{from=\"suspended\",le=\"60\"} 1");
        assert_eq!(end[1], "c_seconds_bucket{from=\"suspended\",le=\"+Inf\"} 2");
        assert_eq!(end[2], "c_seconds_sum{from=\"suspended\"} 90.00015");
        assert_eq!(end[3], "c_seconds_count{from=\"suspended\"} 2");
    }
}
