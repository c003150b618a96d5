//! `perch swap`: makes and removes swap for Machines that sleep.
//!
//! ```text
//!  DIR/swap        a file of root's alone, on while a server of this directory is not down
//!  DIR/swap.zram   or this: the size of a device of compressed memory, its number and the boot that it belongs to
//! ```
//!
//! A server that starts switches it on again, as after a reboot; `perch down` switches it off, with `--purge` it goes.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use perch_machine::{Swap, swap};

use crate::command::Place;
use crate::paths::Paths;
use crate::size::Size;

/// What is smaller helps nobody; what is larger is a slip.
const BYTES_MIN: Size = Size(1 << 20);
const BYTES_MAX: Size = Size(1 << 40);

#[derive(Debug, PartialEq, Eq, clap::Subcommand)]
pub(crate) enum Command {
    /// Make swap in the data directory, and switch it on
    #[command(
        after_help = "Whoever runs on this machine can use it. A server that starts switches it on again"
    )]
    Create {
        /// Such as 512MiB or 2GB
        #[arg(value_parser = Size::parse)]
        size: Size,
        /// Compressed memory instead of a file
        #[arg(long)]
        zram: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Switch it off and remove it
    Remove {
        #[command(flatten)]
        place: Place,
    },
    /// Show the swap of this machine, whoever made it
    Show {
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Zram,
}

/// Entry point of `perch swap`.
pub(crate) fn main(command: &Command) -> ExitCode {
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::fail(&error),
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "perch swap must run as root; run it with sudo"
    );
    let (Command::Create { place, .. } | Command::Remove { place } | Command::Show { place }) =
        command;
    let paths = Paths::new(place.data_dir.as_deref())?;
    match command {
        Command::Create { size, zram, .. } => {
            create(&paths, *size, if *zram { Kind::Zram } else { Kind::File })
        }
        Command::Remove { .. } => {
            let had = remove(&paths)?;
            println!(
                "{}",
                if had { "Removed the swap" } else { "There is no swap of this server" }
            );
            Ok(())
        }
        Command::Show { .. } => {
            println!(
                "{}",
                in_words(Swap::of_this_host().context("could not read the host's swap")?)
            );
            Ok(())
        }
    }
}

/// The host's swap, for people.
pub(crate) fn in_words(swap: Swap) -> String {
    let Swap { total_bytes, used_bytes, store_bytes } = swap;
    if total_bytes == 0 {
        return "none: what sleeps keeps its memory, or is stopped when others need it; to make some: perch swap \
                create 2GiB"
            .to_owned();
    }
    let mut words = format!("{}, {} in use", Size(total_bytes), Size(used_bytes));
    if 0 < store_bytes {
        words.push_str(&format!(", {} of it in memory (zram)", Size(store_bytes)));
    }
    words
}

fn create(paths: &Paths, size: Size, kind: Kind) -> anyhow::Result<()> {
    anyhow::ensure!(
        (BYTES_MIN..=BYTES_MAX).contains(&size),
        "the size must be between {BYTES_MIN} and {BYTES_MAX}"
    );
    anyhow::ensure!(
        paths.data.is_dir(),
        "{} does not exist; start the server first, or name its --data-dir",
        paths.data.display()
    );
    let there = paths.swap_file().exists() || paths.swap_zram().exists();
    anyhow::ensure!(!there, "this server has swap already; remove it first: perch swap remove");
    match kind {
        Kind::File => create_file(&paths.swap_file(), size)?,
        Kind::Zram => create_zram(paths, size)?,
    }
    println!("Made swap of {size}; Machines that sleep go there after `page_out_after`");
    Ok(())
}

fn create_file(path: &Path, size: Size) -> anyhow::Result<()> {
    swap::make_file(path, size.0).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::InvalidInput => "its file system cannot hold swap; try --zram",
            io::ErrorKind::StorageFull => "make room, or take a smaller size",
            _ => "nothing was changed",
        };
        let what = format!("could not make swap in {}; {remedy}", path.display());
        anyhow::Error::new(error).context(what)
    })
}

fn create_zram(paths: &Paths, size: Size) -> anyhow::Result<()> {
    anyhow::ensure!(
        swap::has_zram(),
        "this kernel has no zram, or its module is not loaded; run `modprobe zram`, or make a file without --zram"
    );
    let number = swap::make_zram(size.0, &paths.swap_node());
    let number = number.context("could not make swap of compressed memory")?;
    let written = Zram { bytes: size.0, number, boot: boot_id() }.write(&paths.swap_zram());
    if written.is_err() {
        swap::remove_zram(number, &paths.swap_node()).context("could not take it back")?;
    }
    written.context("could not write down which device it is")
}

/// A device of ours.
#[derive(Debug, PartialEq, Eq)]
struct Zram {
    bytes: u64,
    number: u32,
    /// The boot in which the number means this device; another one may be somebody else's.
    boot: String,
}

impl Zram {
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_ascii_whitespace();
        let (bytes, number) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Self { bytes, number, boot: fields.next()?.to_owned() })
    }

    fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("could not read {}", path.display())),
        }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, format!("{} {} {}\n", self.bytes, self.number, self.boot))
    }

    fn is_there(&self) -> bool {
        self.boot == boot_id()
    }
}

fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Switches on what this server has, as after a reboot. Without it Machines sleep all the same.
pub(crate) fn resume(paths: &Paths) {
    if let Err(error) = try_resume(paths) {
        tracing::warn!(error = format!("{error:#}"), "the server's swap stays off");
    }
}

fn try_resume(paths: &Paths) -> anyhow::Result<()> {
    if paths.swap_file().exists() {
        match swap::switch_on(&paths.swap_file(), None) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            done => done.context("could not switch the swap file on")?,
        }
    }
    if let Some(zram) = Zram::read(&paths.swap_zram())?
        && !zram.is_there()
    {
        create_zram(paths, Size(zram.bytes))?;
    }
    Ok(())
}

/// Switches off what this server has; the next one switches it on.
///
/// # Errors
/// When the kernel refuses, as for want of memory.
pub(crate) fn pause(paths: &Paths) -> anyhow::Result<()> {
    swap::switch_off(&paths.swap_file()).context("could not switch the swap file off")?;
    if let Some(zram) = Zram::read(&paths.swap_zram())?
        && zram.is_there()
    {
        swap::remove_zram(zram.number, &paths.swap_node())
            .context("could not remove the device of compressed memory")?;
        Zram { boot: "off".to_owned(), ..zram }
            .write(&paths.swap_zram())
            .context("could not write down that it is off")?;
    }
    Ok(())
}

/// Removes what this server has; `false` when there was none.
///
/// # Errors
/// When the kernel refuses, as for want of memory: then it stays, and stays on.
pub(crate) fn remove(paths: &Paths) -> anyhow::Result<bool> {
    pause(paths)?;
    let mut had = false;
    for path in [paths.swap_file(), paths.swap_zram()] {
        match fs::remove_file(&path) {
            Ok(()) => had = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("could not remove {}", path.display()));
            }
        }
    }
    Ok(had)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command::Swap;
    use crate::command::tests::parse;

    #[test]
    fn arguments_are_read_in_any_order_and_strangers_are_refused() {
        let parse = |words: &[&str]| parse(&[&["swap"], words].concat());
        let create = |zram, dir: Option<&str>| {
            let place = Place { data_dir: dir.map(Into::into) };
            Ok(Swap(Command::Create { size: Size(1 << 30), zram, place }))
        };
        assert_eq!(parse(&["create", "1G"]), create(false, None));
        let words = ["create", "--zram", "--data-dir=/d", "1G"];
        assert_eq!(parse(&words), create(true, Some("/d")));
        let place = Place::default();
        assert_eq!(parse(&["remove"]), Ok(Swap(Command::Remove { place })));
        for bad in [&["create"][..], &["create", "1", "2"], &["remove", "--zram"], &["on"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        let said = parse(&["create", "much"]).expect_err("no size");
        assert!(said.contains("write it like 512MiB"), "{said}");
    }

    #[test]
    fn a_device_of_another_boot_is_not_taken_for_ours() {
        let device = Zram::parse("4096 3 0000-aaaa\n").expect("valid");
        assert_eq!(device, Zram { bytes: 4096, number: 3, boot: "0000-aaaa".to_owned() });
        assert!(!device.is_there());
        assert_eq!(Zram::parse("4096 three x"), None);
        assert_eq!(Zram::parse(""), None);
    }

    #[test]
    fn without_swap_the_remedy_is_named() {
        assert!(in_words(perch_machine::Swap::default()).contains("perch swap create"));
        let swap =
            perch_machine::Swap { total_bytes: 2 << 30, used_bytes: 1 << 20, store_bytes: 1 << 10 };
        assert_eq!(in_words(swap), "2 GiB, 1 MiB in use, 1 KiB of it in memory (zram)");
    }
}
