//! The guides under `docs/guides`, run as a reader would run them.
//!
//! - `sh`: all of a page run in order, in one shell, in a directory of the page; what fails ends the test.
//! - `text` after it: what the commands print, line by line; `…` stands for anything, alone on a line for any lines.
//! - `toml` whose first line is `# FILE`: written to FILE before the commands that follow.
//! - `<!-- not run: REASON -->` above a block leaves it out.
//!
//! One thing differs from a reader's machine: an image that he has in his Docker is an OCI layout here.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Entry, Host, Image};

use crate::stage::on_host;

/// Printed between the commands of two blocks, with the line of the second one.
const MARK: &str = "@@@ line ";

#[test]
fn the_guide_to_the_blueprint_holds() {
    check_guide("blueprint.md");
}

#[test]
fn the_guide_to_databases_holds() {
    check_guide("databases.md");
}

#[test]
fn the_guide_for_slow_starters_holds() {
    check_guide("slow-starters.md");
}

#[test]
fn the_guide_for_docker_users_holds() {
    check_guide("docker-users.md");
}

#[test]
fn the_guide_for_people_from_fly_holds() {
    check_guide("from-fly.md");
}

#[test]
fn every_guide_is_run() -> Result<()> {
    let own = include_str!("guides.rs");
    for entry in fs::read_dir(guides())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ensure!(own.contains(&format!("check_guide(\"{name}\")")), "{name} is not run");
    }
    Ok(())
}

#[test]
fn a_page_that_is_not_true_is_found() -> Result<()> {
    let page = "```sh\ntrue\n```\n\n```text\nHello …!\n…\nlast\n```\n";
    let blocks = blocks(page)?;
    ensure!(compare(&blocks, "@@@ line 2\nHello you!\na\nb\nlast\n").is_ok(), "a true page");
    for untrue in ["Hello you\nlast", "Hello you!", "last\nHello you!", "Hello you!\nlast\nmore"] {
        let said = compare(&blocks, &format!("@@@ line 2\n{untrue}\n"));
        ensure!(said.is_err(), "passed: {untrue}");
    }
    ensure!(compare(&self::blocks("```text\nx\n```\n")?, "x").is_err(), "printed by nobody");
    ensure!(self::blocks("```python\n```\n").is_err(), "a block that nobody runs");
    ensure!(self::blocks("```toml\nno = 1\n```\n").is_err(), "a file without a name");
    Ok(())
}

fn guides() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides")
}

/// Runs a page on a host of its own.
fn check_guide(name: &str) {
    on_host(|host| {
        let page = fs::read_to_string(guides().join(name))?;
        let dir = host.dir().join("reader");
        fs::create_dir(&dir)?;
        if page.contains("quotes.tar") {
            Image::hello(8081)?.write_docker_archive("quotes:latest", &dir.join("quotes.tar"))?;
        }
        let blocks = blocks(&with_images(host, &page)?)?;
        let script = script(&blocks)?;
        let path = host.dir().join("page.sh");
        fs::write(&path, script)?;
        let search = format!("{}:{}", programs(host)?.display(), std::env::var("PATH")?);
        let (path, dir) = (path.to_string_lossy(), dir.to_string_lossy());
        let run = format!("cd '{dir}' && PATH='{search}' exec bash -euo pipefail '{path}' 2>&1");
        let printed = host.run("bash", &["-c", &run])?.ok().with_context(|| name.to_owned())?;
        compare(&blocks, &printed).with_context(|| format!("{name} says otherwise"))
    });
}

/// `fly`, `perch` and a `sudo` for one who is root already, as installed.
fn programs(host: &Host) -> Result<PathBuf> {
    let bin = host.dir().join("bin");
    fs::create_dir(&bin)?;
    let perch = std::env::var("PERCH_BIN").context("PERCH_BIN is not set")?;
    let perch = fs::canonicalize(perch)?;
    symlink(&perch, bin.join("perch"))?;
    symlink(&perch, bin.join("fly"))?;
    fs::write(bin.join("sudo"), "#!/bin/sh\nexec \"$@\"\n")?;
    fs::set_permissions(bin.join("sudo"), fs::Permissions::from_mode(0o755))?;
    Ok(bin)
}

/// The page with the names of images that are there.
fn with_images(host: &Host, page: &str) -> Result<String> {
    type Make = fn() -> Result<Image>;
    let images: [(&str, Make); 3] =
        [("quotes:latest", || Image::hello(8081)), ("model:latest", model), ("redis:7", redis)];
    let mut page = page.to_owned();
    for (name, make) in images {
        if page.contains(name) {
            let image = make()?.write(&host.dir().join(name.replace(':', "-")))?;
            page = page.replace(&format!("--image {name}"), &format!("--image {image}"));
            page = page.replace(&format!("image = \"{name}\""), &format!("image = \"{image}\""));
        }
    }
    Ok(page)
}

/// A model that takes two seconds to load.
fn model() -> Result<Image> {
    Image::shell(
        "sleep 2; mkdir -p /tmp/www; echo loaded > /tmp/www/index.html; \
         exec busybox httpd -f -p 0.0.0.0:8000 -h /tmp/www",
    )
}

/// Debian's Redis. The program that it calls `redis-check-rdb` is the server under another name; the package that
/// gives it its own one would start it on the machine that runs the tests.
fn redis() -> Result<Image> {
    let image = Image::program("redis-check-rdb", "redis-server")?.entry("tmp", &Entry::Dir);
    let options = ["--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", "/tmp"];
    Ok(image.entrypoint(&[&["/redis-server"], options.as_slice()].concat()))
}

/// A fenced block.
#[derive(Debug)]
struct Block {
    kind: Kind,
    line: usize,
    text: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Commands,
    Printed,
    File(String),
}

/// The blocks of a page that are run.
fn blocks(page: &str) -> Result<Vec<Block>> {
    let mut found = Vec::new();
    let (mut open, mut excused): (Option<(&str, Block)>, bool) = (None, false);
    for (line, text) in (1..).zip(page.lines()) {
        match (&mut open, text.strip_prefix("```")) {
            (None, Some(language)) => {
                let block = Block { kind: Kind::Commands, line: line + 1, text: String::new() };
                open = Some((language, block));
            }
            (Some(_), Some(_)) => {
                let (language, block) = open.take().context("no block is open")?;
                if !std::mem::take(&mut excused) {
                    found.push(of_language(language, block)?);
                }
            }
            (Some((_, block)), None) => writeln!(block.text, "{text}")?,
            (None, None) if text.is_empty() => {}
            (None, None) => excused = text.starts_with("<!-- not run: "),
        }
    }
    ensure!(open.is_none(), "a block is not closed");
    Ok(found)
}

fn of_language(language: &str, mut block: Block) -> Result<Block> {
    block.kind = match language {
        "sh" => Kind::Commands,
        "text" => Kind::Printed,
        "toml" => {
            let name = block.text.lines().next().and_then(|first| first.strip_prefix("# "));
            let name = name.with_context(|| format!("line {}: no `# FILE`", block.line))?;
            Kind::File(name.to_owned())
        }
        other => bail!("line {}: a block of {other:?} is never run", block.line),
    };
    Ok(block)
}

/// All of a page as one script. Files are relative to where the page began.
fn script(blocks: &[Block]) -> Result<String> {
    let mut script = "start=$PWD\n".to_owned();
    for block in blocks {
        match &block.kind {
            Kind::Commands => write!(script, "echo '{MARK}{}'\n{}", block.line, block.text)?,
            Kind::File(name) => {
                writeln!(script, "mkdir -p \"$(dirname \"$start/{name}\")\"")?;
                write!(script, "cat > \"$start/{name}\" <<'END OF FILE'\n{}", block.text)?;
                writeln!(script, "END OF FILE")?;
            }
            Kind::Printed => {}
        }
    }
    Ok(script)
}

/// Whether each block printed what the page says.
fn compare(blocks: &[Block], printed: &str) -> Result<()> {
    for (index, expected) in blocks.iter().enumerate() {
        if expected.kind != Kind::Printed {
            continue;
        }
        let commands = index.checked_sub(1).map(|before| &blocks[before]);
        let commands = commands.filter(|block| block.kind == Kind::Commands);
        let commands =
            commands.with_context(|| format!("line {}: nothing printed this", expected.line))?;
        let mark = format!("{MARK}{}\n", commands.line);
        let (_, after) = printed.split_once(&mark).with_context(|| format!("no `{mark}`"))?;
        let seen = after.split(MARK).next().unwrap_or_default();
        let lines: Vec<&str> = seen.trim().lines().collect();
        let wanted: Vec<&str> = expected.text.trim().lines().collect();
        ensure!(
            lines_match(&wanted, &lines),
            "line {}: the page says\n{}\nbut printed is\n{seen}",
            expected.line,
            expected.text
        );
    }
    Ok(())
}

fn lines_match(wanted: &[&str], lines: &[&str]) -> bool {
    match wanted.split_first() {
        None => lines.is_empty(),
        Some((&"…", rest)) => {
            (0..=lines.len()).any(|skipped| lines_match(rest, &lines[skipped..]))
        }
        Some((first, rest)) => lines
            .split_first()
            .is_some_and(|(line, others)| line_matches(first, line) && lines_match(rest, others)),
    }
}

/// White space between words does not count: widths of columns follow their contents.
fn line_matches(wanted: &str, line: &str) -> bool {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (wanted, line) = (squeeze(wanted), squeeze(line));
    let mut parts = wanted.split('…').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    if !wanted.contains('…') {
        return rest.is_empty();
    }
    let parts: Vec<&str> = parts.collect();
    let (last, middle) = parts.split_last().unwrap_or((&"", &[]));
    for part in middle {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}
