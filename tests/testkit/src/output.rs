//! What a command printed, without colours.

use std::fmt;
use std::process::ExitStatus;

use anyhow::{Context, Result, bail};

/// A finished command.
#[derive(Debug, Clone)]
pub struct Output {
    /// What was called, for error texts.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output without ANSI sequences.
    pub stdout: String,
    /// Standard error without ANSI sequences.
    pub stderr: String,
}

impl Output {
    /// Takes what the standard library returned.
    pub fn new(command: String, output: &std::process::Output) -> Self {
        Self {
            command,
            status: output.status,
            stdout: plain(&String::from_utf8_lossy(&output.stdout)),
            stderr: plain(&String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// Standard output of a command that must have succeeded.
    pub fn ok(self) -> Result<String> {
        if !self.status.success() {
            bail!("should have succeeded: {self}");
        }
        Ok(self.stdout)
    }

    /// Standard error of a command that must have failed with exit code 1.
    pub fn fails(self) -> Result<String> {
        if self.status.code() != Some(1) {
            bail!("should have failed with code 1: {self}");
        }
        Ok(self.stderr)
    }

    /// Fails unless standard output or error contains every one of `parts`.
    pub fn says(&self, parts: &[&str]) -> Result<()> {
        let both = format!("{}\n{}", self.stdout, self.stderr);
        match parts.iter().find(|part| !both.contains(*part)) {
            Some(part) => bail!("`{part}` is missing in: {self}"),
            None => Ok(()),
        }
    }

    /// Standard output as JSON.
    pub fn json(self) -> Result<serde_json::Value> {
        let command = self.command.clone();
        serde_json::from_str(&self.ok()?).with_context(|| format!("JSON of `{command}`"))
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, status, stdout, stderr } = self;
        write!(f, "`{command}` ended with {status}\n--- stdout\n{stdout}--- stderr\n{stderr}---")
    }
}

/// Removes colours (CSI) and hyperlinks (OSC).
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('[') => while chars.next().is_some_and(|c| !c.is_ascii_alphabetic()) {},
            Some(']') => while chars.next().is_some_and(|c| c != '\u{7}' && c != '\\') {},
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_links_disappear() {
        assert_eq!(plain("\u{1b}[1;31mred\u{1b}[0m x"), "red x");
        assert_eq!(plain("\u{1b}]8;;http://x\u{1b}\\text\u{1b}]8;;\u{1b}\\"), "text");
    }
}
