//! `perch doctor`: what this machine offers, and how to mend what is missing.

use std::path::Path;
use std::process::ExitCode;

use perch_net::Check;

/// Entry point of `perch doctor`.
pub(crate) fn main() -> ExitCode {
    let mut checks = perch_net::doctor();
    checks.push(files(Path::new(crate::paths::DATA_DIR)));
    checks.push(swap());
    checks.push(cpu());
    checks.push(volumes());
    for check in &checks {
        println!("{}", line(check));
    }
    let missing = checks.iter().filter(|check| !check.ok).count();
    if missing == 0 {
        println!("\nEverything that Perch needs is here");
        return ExitCode::SUCCESS;
    }
    println!("\n{missing} of {} checks need attention", checks.len());
    ExitCode::FAILURE
}

/// What a server needs before it touches anything: the first failed check becomes the error.
///
/// # Errors
/// With what is missing and its remedy.
pub(crate) fn require() -> anyhow::Result<()> {
    let failed: Vec<String> = perch_net::doctor()
        .into_iter()
        .filter(|check| !check.ok)
        .map(|check| format!("{}: {}; {}", check.name, check.detail, check.remedy))
        .collect();
    anyhow::ensure!(failed.is_empty(), "this machine cannot run Perch yet: {}", failed.join("; "));
    Ok(())
}

/// How Machines get their files, on the file system where the data directory is or would be.
fn files(data: &Path) -> Check {
    let dir = data.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let name = "owners of files";
    match crate::ids::choose(dir) {
        Ok(found) => {
            let detail = crate::ids::in_words(&found);
            Check { name, ok: true, detail, remedy: String::new() }
        }
        Err(error) => {
            let remedy = format!("put {} on a file system that overlayfs takes", data.display());
            Check { name, ok: false, detail: error.to_string(), remedy }
        }
    }
}

/// Nobody needs it; with it sleep gives memory back.
fn swap() -> Check {
    let detail = match perch_machine::Swap::of_this_host() {
        Ok(swap) => crate::swap::in_words(swap),
        Err(error) => format!("could not be read: {error}"),
    };
    Check { name: "swap", ok: true, detail, remedy: String::new() }
}

/// Older kernels know weights alone.
fn cpu() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let detail = match knows_idle_class(&release) {
        true => "Machines above their baseline can yield to others (cpu.idle), with cpu_yield"
            .to_owned(),
        false => format!(
            "Machines yield to others by their weight alone: cpu.idle came with Linux 5.15, this is {release}"
        ),
    };
    Check { name: "CPU", ok: true, detail, remedy: String::new() }
}

fn knows_idle_class(release: &str) -> bool {
    let mut numbers = release.split(|it: char| !it.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (5, 15) <= (next(), next())
}

/// Without them volumes are directories, which nobody with data to keep should have by accident.
fn volumes() -> Check {
    let (ok, detail) = match perch_machine::volumes::lacks_images() {
        None => (true, "file systems of their own".to_owned()),
        Some(why) => (false, format!("directories, their sizes are not enforced: {why}")),
    };
    let remedy = "apt install e2fsprogs; in a container, allow it loop devices".to_owned();
    Check { name: "volumes", ok, detail, remedy }
}

fn line(check: &Check) -> String {
    let mark = if check.ok { "ok     " } else { "MISSING" };
    let mut line = format!("{mark}  {:<24} {}", check.name, check.detail);
    if !check.ok {
        line.push_str(&format!("\n         {:<24} {}", "", check.remedy));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_idle_class_is_known_since_5_15() {
        let known = ["5.15.0-91-generic", "6.1.0-18-amd64", "6.18.44", "10.0"];
        assert!(known.into_iter().all(knows_idle_class));
        assert!(!["5.14.21", "5.4", "4.19.0-26", ""].into_iter().any(knows_idle_class));
    }

    #[test]
    fn a_missing_thing_is_shown_with_its_remedy() {
        let check = Check {
            name: "IPv6",
            ok: false,
            detail: "is switched off".to_owned(),
            remedy: "boot without ipv6.disable=1".to_owned(),
        };
        let text = line(&check);
        assert!(text.starts_with("MISSING") && text.contains("boot without"), "{text}");
    }
}
