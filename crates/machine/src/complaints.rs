//! Writes down what libcontainer complains of. Its processes hand each other one sentence without causes; the causes are
//! in its log events alone.

use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Writes each error event as a line to what is standard error now. The descriptor is a copy, as the container's
/// process gets other outputs while it is still set up.
pub(crate) fn to_stderr() -> io::Result<()> {
    let copy = rustix::io::fcntl_dupfd_cloexec(io::stderr(), crate::shim::REPORT_FD + 1)?;
    tracing::subscriber::set_global_default(Complaints(copy.into())).map_err(io::Error::other)
}

#[derive(Debug)]
struct Complaints(File);

impl Subscriber for Complaints {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        line.0.push('\n');
        // There is no other place to complain.
        drop((&self.0).write_all(line.0.as_bytes()));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event's message and values.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = match field.name() {
            "message" => format!("{value:?}"),
            name => format!("{name}={value:?}"),
        };
        let separator = if self.0.is_empty() { "" } else { ", " };
        self.0 = format!("{}{separator}{}", self.0, text.replace('\n', " "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_written_with_their_values_and_the_rest_is_not() -> io::Result<()> {
        let dir = crate::scratch_dir("complaints")?;
        let complaints = Complaints(File::create(dir.join("log"))?);
        tracing::subscriber::with_default(complaints, || {
            tracing::error!(path = %"/x", "failed to mount");
            tracing::warn!("not this");
        });
        assert_eq!(std::fs::read_to_string(dir.join("log"))?, "failed to mount, path=/x\n");
        std::fs::remove_dir_all(dir)
    }
}
