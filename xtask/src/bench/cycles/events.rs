//! Counts what the server did to Machines, by its own log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::Result;

/// Events by name and source, since the beginning.
pub(super) struct Events {
    log: PathBuf,
    offset: u64,
    /// The beginning of a line whose end is not written yet.
    begun: String,
    counts: BTreeMap<(String, String), usize>,
}

impl Events {
    /// Counts what is in this log from its end on.
    pub(super) fn of(log: PathBuf) -> Self {
        let offset = log.metadata().map_or(0, |file| file.len());
        Self { log, offset, begun: String::new(), counts: BTreeMap::new() }
    }

    /// Reads what was written since the last time.
    pub(super) fn read_on(&mut self) -> Result<()> {
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        self.offset += file.read_to_end(&mut bytes)? as u64;
        self.begun += &String::from_utf8_lossy(&bytes);
        let whole = self.begun.rfind('\n').map_or(0, |end| end + 1);
        let lines: String = self.begun.drain(..whole).collect();
        for line in lines.lines() {
            if let (Some(event), Some(source)) = (field(line, "event"), field(line, "source")) {
                *self.counts.entry((event, source)).or_default() += 1;
            }
        }
        Ok(())
    }

    /// How often a caller's request had a Machine started or thawed.
    pub(super) fn wakes(&self) -> usize {
        self.by_proxy("launch") + self.by_proxy("resume")
    }

    fn by_proxy(&self, event: &str) -> usize {
        self.counts.get(&(event.to_owned(), "proxy".to_owned())).copied().unwrap_or_default()
    }

    pub(super) fn print(&self) {
        let (stopped, suspended) = (self.by_proxy("launch"), self.by_proxy("resume"));
        println!(
            "{} wakes, {stopped} from stopped, {suspended} from suspended; events of Machines:",
            self.wakes()
        );
        for ((event, source), count) in &self.counts {
            println!("  {event:<16} by {source:<8} {count:>9}");
        }
    }
}

/// `name="value"` of a line.
fn field(line: &str, name: &str) -> Option<String> {
    let (_, rest) = line.split_once(&format!(" {name}=\""))?;
    Some(rest.split_once('"')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read_by_its_whole_name() {
        let line = r#"INFO machine="1" event="exit" state="stopped" source="flyd" cause="""#;
        assert_eq!(field(line, "event").as_deref(), Some("exit"));
        assert_eq!(field(line, "cause").as_deref(), Some(""));
        assert_eq!(field(line, "vent"), None);
    }
}
