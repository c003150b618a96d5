//! `cargo x install`, `uninstall` and `dist`: what users get, laid out once for all three.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{licenses, shell};

/// Where systemd looks for the units of what was not installed by a package manager.
const UNITS_OF_HOST: &str = "etc/systemd/system";
/// Where it looks for packages' units.
const UNITS_OF_PACKAGES: &str = "usr/lib/systemd/system";
const GROUP: &str = "perch";
/// Whom a Debian package names.
const MAINTAINER: &str = "The Perch authors <perch@example.org>";
/// What comes first when the binary is built already.
const BUILT: &str = "--built";

/// Where a shell looks for completions of `fly`, below the prefix.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/fly"),
    ("zsh", "share/zsh/site-functions/_fly"),
    ("fish", "share/fish/vendor_completions.d/fly.fish"),
];

/// Where manual pages go, below the prefix.
const PAGES: &str = "share/man/man1";

/// One file of the tree: where it comes from, where it goes below the root, its mode.
type Placed = (PathBuf, PathBuf, u32);

/// Builds, and installs on this host below `--prefix` (default `/usr/local`). Root is needed for the second half only,
/// and root has no toolchain as a rule: `sudo` then runs this program again.
pub(crate) fn install(args: &[String]) -> Result<bool> {
    let (built, args) = match args {
        [flag, binary, rest @ ..] if flag == BUILT => (Some(PathBuf::from(binary)), rest),
        rest => (None, rest),
    };
    let prefix = prefix(args)?;
    let binary = match built {
        Some(binary) => binary,
        None => release_binary()?,
    };
    if !shell::is_root() {
        let binary = binary.to_string_lossy();
        return as_root(&[&["install", BUILT, &binary], &words(args)[..]].concat());
    }
    let made = tempfile::tempdir()?;
    write_made(&binary, made.path())?;
    for placed in files(&binary, made.path(), &prefix, Path::new(UNITS_OF_HOST))? {
        let keep = placed.1.extension().is_some_and(|suffix| suffix == "toml");
        let target = Path::new("/").join(&placed.1);
        if keep && target.exists() {
            println!("kept       {}", target.display());
            continue;
        }
        place(Path::new("/"), &placed, &prefix)?;
        println!("installed  {}", target.display());
    }
    make_group()?;
    link_client(&prefix)?;
    println!("\nstart it with: systemctl daemon-reload && systemctl enable --now perch");
    println!(
        "members of the group {GROUP} may use it, which is as powerful as root: usermod -aG {GROUP} NAME"
    );
    Ok(true)
}

/// Removes what [`install`] placed; data and configuration stay.
pub(crate) fn uninstall(args: &[String]) -> Result<bool> {
    let prefix = prefix(args)?;
    if !shell::is_root() {
        return as_root(&[&["uninstall"], &words(args)[..]].concat());
    }
    let binary = Path::new("/").join(&prefix).join("bin/perch");
    let link = binary.with_file_name("fly");
    if fs::read_link(&link).is_ok_and(|target| target == Path::new("perch")) {
        remove(&link)?;
    }
    let pages = Path::new("/").join(&prefix).join(PAGES);
    for (link, page) in links(&pages)? {
        let link = pages.join(link);
        if fs::read_link(&link).is_ok_and(|target| target == Path::new(&page)) {
            remove(&link)?;
        }
    }
    // The pages that are there are those that were made.
    for (_source, target, _mode) in files(&binary, &pages, &prefix, Path::new(UNITS_OF_HOST))? {
        let target = Path::new("/").join(target);
        if target.extension().is_none_or(|suffix| suffix != "toml") && target.exists() {
            remove(&target)?;
        }
    }
    println!("\nconfiguration is left in /etc/perch, data in /var/lib/perch");
    Ok(true)
}

/// Makes a tarball and, where `dpkg-deb` is, a Debian package in `target/dist`.
pub(crate) fn dist() -> Result<bool> {
    let binary = release_binary()?;
    let out = shell::target_dir()?.join("dist");
    fs::create_dir_all(&out)?;
    let name = format!("perch-{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let tarball = out.join(format!("{name}.tar.gz"));
    let stage = tempfile::tempdir()?;
    lay_out(&stage.path().join(&name), &binary, Path::new("usr"), Path::new(UNITS_OF_PACKAGES))?;
    let packed = shell::succeeds(
        Command::new("tar")
            .args(["--owner=0", "--group=0", "--sort=name", "-C"])
            .arg(stage.path())
            .arg("-czf")
            .arg(&tarball)
            .arg(&name),
    )?;
    ensure!(packed, "tar could not pack {}", tarball.display());
    println!("{}", tarball.display());
    if shell::has_program("dpkg-deb") {
        println!("{}", deb(&out, &binary)?.display());
    } else {
        println!("no .deb: there is no dpkg-deb here");
    }
    Ok(true)
}

/// Makes the Debian package around this binary, beside which the notices of others lie.
pub(crate) fn deb(out: &Path, binary: &Path) -> Result<PathBuf> {
    let stage = tempfile::tempdir()?;
    let root = stage.path().join("perch");
    lay_out(&root, binary, Path::new("usr"), Path::new(UNITS_OF_PACKAGES))?;
    debian_papers(&root)?;
    let control = root.join("DEBIAN");
    fs::create_dir(&control)?;
    for script in ["postinst", "prerm", "postrm"] {
        let text = fs::read(packaging().join(script))?;
        write(&control.join(script), &text, 0o755)?;
    }
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("Debian's name for the architecture {other} is not known here"),
    };
    let version = env!("CARGO_PKG_VERSION");
    let fields = format!(
        "Package: perch\nVersion: {version}\nArchitecture: {architecture}\nSection: admin\n\
         Priority: optional\nMaintainer: {MAINTAINER}\n\
         Recommends: systemd\nDescription: private apps that sleep and wake\n \
         Runs private apps on this machine, reachable over a private IPv6 network, and\n \
         puts their Machines to sleep until the next request.\n"
    );
    write(&control.join("control"), fields.as_bytes(), 0o644)?;
    write(&control.join("conffiles"), b"/etc/perch/perch.toml\n", 0o644)?;
    let package = out.join(format!("perch_{version}_{architecture}.deb"));
    let made = shell::output(
        Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&root).arg(&package),
    );
    made.map(|_says| package)
}

/// What Debian wants to find beside a program, where it wants it.
fn debian_papers(root: &Path) -> Result<()> {
    let documents = root.join("usr/share/doc/perch");
    fs::remove_file(documents.join("LICENSE")).context("leaving the licence to Debian's copy")?;
    let ours = |name: &str| fs::read(packaging().join("debian").join(name));
    write(&documents.join("copyright"), &ours("copyright")?, 0o644)?;
    let overrides = root.join("usr/share/lintian/overrides/perch");
    write(&overrides, &ours("lintian-overrides")?, 0o644)?;
    let changes = shell::root().join("CHANGELOG.md");
    let date = shell::output(Command::new("date").args(["-R", "-r"]).arg(&changes))?;
    let version = env!("CARGO_PKG_VERSION");
    let entry = format!(
        "perch ({version}) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- {MAINTAINER}  {}\n",
        date.trim()
    );
    let changelog = documents.join("changelog");
    write(&changelog, entry.as_bytes(), 0o644)?;
    let manual = root.join("usr").join(PAGES);
    let pages = pages(&manual)?.into_iter().map(|page| manual.join(page));
    shell::output(Command::new("gzip").arg("-9n").arg(&changelog).args(pages)).map(drop)
}

/// The same tree for the tarball and the package.
fn lay_out(root: &Path, binary: &Path, prefix: &Path, units: &Path) -> Result<()> {
    let made = tempfile::tempdir()?;
    write_made(binary, made.path())?;
    let files = files(binary, made.path(), prefix, units)?;
    files.iter().try_for_each(|placed| place(root, placed, prefix))
}

/// Has the binary itself write completions, one file for each shell, and manual pages.
fn write_made(binary: &Path, dir: &Path) -> Result<()> {
    for (shell, _target) in COMPLETIONS {
        let text = shell::output(Command::new(binary).args(["fly", "completion", shell]))?;
        fs::write(dir.join(shell), text)?;
    }
    shell::output(Command::new(binary).arg("man").arg(dir)).map(drop)
}

fn files(binary: &Path, made: &Path, prefix: &Path, units: &Path) -> Result<Vec<Placed>> {
    let ours = |name: &str| packaging().join(name);
    let document =
        |name: &str| (shell::root().join(name), prefix.join("share/doc/perch").join(name), 0o644);
    let completion = |(shell, target): (&str, &str)| (made.join(shell), prefix.join(target), 0o644);
    let page = |name: String| (made.join(&name), prefix.join(PAGES).join(name), 0o644);
    let mut files = vec![
        (binary.to_path_buf(), prefix.join("bin/perch"), 0o755),
        (ours("perch.service"), units.join("perch.service"), 0o644),
        (ours("perch.sysusers"), prefix.join("lib/sysusers.d/perch.conf"), 0o644),
        (ours("perch.toml"), "etc/perch/perch.toml".into(), 0o644),
        document("README.md"),
        document("CHANGELOG.md"),
        document("docs/backup.md"),
        document("LICENSE"),
        (
            binary.with_file_name(licenses::NAME),
            prefix.join("share/doc/perch").join(licenses::NAME),
            0o644,
        ),
    ];
    files.extend(COMPLETIONS.map(completion));
    files.extend(pages(made)?.into_iter().map(page));
    Ok(files)
}

/// Our pages in a directory: `perch.1`, and `perch-fly-apps.1` for what is `fly apps` where `fly` is ours.
fn pages(dir: &Path) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(Vec::new()) };
    let names: Result<Vec<_>, _> = entries.map(|entry| entry.map(|it| it.file_name())).collect();
    let mut names: Vec<String> =
        names?.into_iter().filter_map(|name| name.into_string().ok()).collect();
    names.retain(|name| name == "perch.1" || (name.starts_with("perch-") && name.ends_with(".1")));
    names.sort_unstable();
    Ok(names)
}

/// The pages of the client, each with the name it has where `fly` is ours.
fn links(dir: &Path) -> Result<Vec<(String, String)>> {
    let link = |page: String| Some((page.strip_prefix("perch-")?.to_owned(), page));
    let all = pages(dir)?.into_iter().filter_map(link);
    Ok(all.filter(|(link, _)| link == "fly.1" || link.starts_with("fly-")).collect())
}

/// Writes one file; the unit names the binary where it is.
fn place(root: &Path, (source, target, mode): &Placed, prefix: &Path) -> Result<()> {
    let mut bytes = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
    if target.extension().is_some_and(|suffix| suffix == "service") {
        let text = String::from_utf8(bytes).context("the unit is not text")?;
        let binary = Path::new("/").join(prefix).join("bin/perch");
        bytes = text.replace("/usr/bin/perch", &binary.to_string_lossy()).into_bytes();
    }
    write(&root.join(target), &bytes, *mode)
}

/// By a new file and a rename: a running program's file cannot be written to.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let dir = path.parent().context("a file without a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let mut file = tempfile::NamedTempFile::new_in(dir)
        .with_context(|| format!("writing in {}", dir.display()))?;
    file.write_all(bytes)?;
    fs::set_permissions(file.path(), fs::Permissions::from_mode(mode))?;
    file.persist(path).with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    println!("removed    {}", path.display());
    Ok(())
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// Runs this program again as root, after saying so.
fn as_root(args: &[&str]) -> Result<bool> {
    let program = std::env::current_exe().context("finding this program")?;
    println!("running    sudo {} {}", program.display(), args.join(" "));
    shell::succeeds(Command::new("sudo").arg(program).args(args))
}

fn make_group() -> Result<()> {
    let groups = fs::read_to_string("/etc/group").context("reading /etc/group")?;
    if groups.lines().any(|line| line.split(':').next() == Some(GROUP)) {
        return Ok(());
    }
    shell::output(Command::new("groupadd").args(["--system", GROUP]))?;
    println!("made       group {GROUP}");
    Ok(())
}

/// `fly` is linked only where no other client is: Fly's own must go on working.
fn link_client(prefix: &Path) -> Result<()> {
    let binary = Path::new("/").join(prefix).join("bin/perch");
    let link = binary.with_file_name("fly");
    let others = ["fly", "flyctl"].into_iter().filter_map(program);
    let stranger = others.into_iter().find(|other| {
        fs::canonicalize(other).ok().as_deref() != fs::canonicalize(&binary).ok().as_deref()
    });
    if let Some(other) = stranger {
        println!("not linked {}: {} is there; use `perch fly`", link.display(), other.display());
        return Ok(());
    }
    if fs::symlink_metadata(&link).is_err() {
        symlink("perch", &link).with_context(|| format!("linking {}", link.display()))?;
        println!("linked     {}", link.display());
    }
    link_pages(&Path::new("/").join(prefix).join(PAGES))
}

/// The pages of `fly` have its name where it has: with another client, `man fly` is that one's.
fn link_pages(dir: &Path) -> Result<()> {
    let links = links(dir)?;
    for (link, page) in &links {
        let link = dir.join(link);
        if fs::symlink_metadata(&link).is_err() {
            symlink(page, &link).with_context(|| format!("linking {}", link.display()))?;
        }
    }
    println!("linked     {} manual pages in {}", links.len(), dir.display());
    Ok(())
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// `--prefix DIR`, without its leading slash.
fn prefix(args: &[String]) -> Result<PathBuf> {
    let dir = match args {
        [] => "/usr/local",
        [flag, dir] if flag == "--prefix" => dir.as_str(),
        [flag] if flag.starts_with("--prefix=") => &flag["--prefix=".len()..],
        _ => bail!("usage: cargo x install|uninstall [--prefix DIR]"),
    };
    let Ok(inner) = Path::new(dir).strip_prefix("/") else {
        bail!("--prefix must be an absolute path, not {dir:?}");
    };
    Ok(inner.to_path_buf())
}

fn packaging() -> PathBuf {
    shell::root().join("packaging")
}

fn release_binary() -> Result<PathBuf> {
    let built = shell::succeeds(&mut shell::cargo(&[
        "build",
        "--release",
        "--locked",
        "--package",
        "perch",
    ]))?;
    ensure!(built, "perch does not build");
    let binary = shell::built("release", "perch")?;
    licenses::write_beside(&binary)?;
    Ok(binary)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(args: &[&str]) -> Vec<String> {
        args.iter().map(|arg| (*arg).to_owned()).collect()
    }

    #[test]
    fn the_prefix_is_absolute_and_local_by_default() {
        assert_eq!(prefix(&[]).expect("default"), Path::new("usr/local"));
        assert_eq!(prefix(&strings(&["--prefix=/opt/p"])).expect("given"), Path::new("opt/p"));
        assert!(prefix(&strings(&["--prefix", "here"])).is_err());
        assert!(prefix(&strings(&["--profix", "/x"])).is_err());
    }

    #[test]
    fn the_unit_names_the_binary_below_the_prefix() {
        let root = tempfile::tempdir().expect("a directory");
        let binary = root.path().join("binary");
        let script = b"#!/bin/sh\nif [ $1 = man ]; then touch $2/perch.1; else echo \"$@\"; fi";
        write(&binary, script, 0o755).expect("written");
        let notices = root.path().join(licenses::NAME);
        write(&notices, b"whose", 0o644).expect("written");
        let units = Path::new(UNITS_OF_HOST);
        lay_out(root.path(), &binary, Path::new("opt/p"), units).expect("laid out");
        let unit = fs::read_to_string(root.path().join(units).join("perch.service"));
        let unit = unit.expect("the unit");
        assert!(unit.contains("ExecStart=/opt/p/bin/perch server"), "{unit}");
        assert!(root.path().join("opt/p/bin/perch").exists());
        assert!(root.path().join("opt/p/share/man/man1/perch.1").exists());
        let notices = root.path().join("opt/p/share/doc/perch").join(licenses::NAME);
        assert_eq!(fs::read_to_string(notices).expect("the notices"), "whose");
        let fish = root.path().join("opt/p/share/fish/vendor_completions.d/fly.fish");
        assert_eq!(fs::read_to_string(fish).expect("completions"), "fly completion fish\n");
    }

    #[test]
    fn pages_of_the_client_get_its_name_and_those_of_others_are_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let all = ["perch.1", "perch-server.1", "perch-fly.1", "perch-fly-apps.1", "fly.1", "x.1"];
        let touch = |name: &str| fs::write(dir.path().join(name), name).expect("written");
        all.iter().for_each(|name| touch(name));
        link_pages(dir.path()).expect("linked");
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).expect("a page");
        assert_eq!(text("fly.1"), "fly.1", "it was there");
        assert_eq!(text("fly-apps.1"), "perch-fly-apps.1");
        assert!(!dir.path().join("server.1").exists());
    }
}
