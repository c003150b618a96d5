//! Sizes as flyctl reads them: memory in binary units, volumes in decimal ones, and the presets.

use super::duration::go_integer;

/// CPUs, memory and kind of CPU of a named size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Preset {
    pub(crate) cpu_kind: &'static str,
    pub(crate) cpus: u32,
    pub(crate) memory_mb: u32,
    pub(crate) gpu_kind: Option<&'static str>,
}

/// Memory per CPU of the shared sizes (MA-51).
const SHARED_MB_PER_CPU: u32 = 256;
/// Memory per CPU of the performance sizes (MA-51).
const PERFORMANCE_MB_PER_CPU: u32 = 2048;
const SHARED_CPUS: [u32; 5] = [1, 2, 4, 6, 8];
const PERFORMANCE_CPUS: [u32; 9] = [1, 2, 4, 6, 8, 10, 12, 14, 16];
const GPU_SIZES: [(&str, &str); 4] = [
    ("a100-40gb", "a100-pcie-40gb"),
    ("a100-80gb", "a100-sxm4-80gb"),
    ("l40s", "l40s"),
    ("a10", "a10"),
];

/// The preset of a name, or the names that would have been right.
pub(crate) fn preset(name: &str) -> Result<Preset, String> {
    if let Some((_, gpu)) = GPU_SIZES.iter().find(|(size, _)| *size == name) {
        let preset = Preset { gpu_kind: Some(gpu), ..performance(8) };
        return Ok(Preset { memory_mb: 32768, ..preset });
    }
    let cpus = |prefix: &str| name.strip_prefix(prefix)?.strip_suffix('x')?.parse::<u32>().ok();
    if let Some(cpus) = cpus("shared-cpu-").filter(|cpus| SHARED_CPUS.contains(cpus)) {
        let memory_mb = cpus * SHARED_MB_PER_CPU;
        return Ok(Preset { cpu_kind: "shared", cpus, memory_mb, gpu_kind: None });
    }
    if let Some(cpus) = cpus("performance-").filter(|cpus| PERFORMANCE_CPUS.contains(cpus)) {
        return Ok(performance(cpus));
    }
    Err(known_sizes(name))
}

/// The sizes without a GPU, by CPUs, then memory.
pub(crate) fn presets() -> Vec<(String, Preset)> {
    let shared = SHARED_CPUS.map(|cpus| format!("shared-cpu-{cpus}x"));
    let names =
        shared.into_iter().chain(PERFORMANCE_CPUS.map(|cpus| format!("performance-{cpus}x")));
    let mut all: Vec<_> =
        names.filter_map(|name| preset(&name).ok().map(|preset| (name, preset))).collect();
    all.sort_by_key(|(_, preset)| (preset.cpus, preset.memory_mb));
    all
}

fn performance(cpus: u32) -> Preset {
    let memory_mb = cpus * PERFORMANCE_MB_PER_CPU;
    Preset { cpu_kind: "performance", cpus, memory_mb, gpu_kind: None }
}

fn known_sizes(name: &str) -> String {
    let shared = SHARED_CPUS.map(|cpus| format!("shared-cpu-{cpus}x"));
    let performance = PERFORMANCE_CPUS.map(|cpus| format!("performance-{cpus}x"));
    if name.starts_with("performance") {
        return performance.join(", ");
    }
    if name.starts_with("shared") {
        return shared.join(", ");
    }
    format!("{}, {}", shared.join(", "), performance.join(", "))
}

/// Memory in MB: a bare integer is MB, else binary units of any case (T-24). Zero is no memory.
pub(crate) fn memory_mb(text: &str) -> Option<i64> {
    size(text, 1024, 1 << 20).filter(|mb| *mb != 0)
}

/// A volume's size in whole GB: a bare integer is GB, else decimal units, cut off (T-23).
pub(crate) fn volume_gb(text: &str) -> Option<i64> {
    size(text, 1000, 1_000_000_000)
}

fn size(text: &str, step: u64, quotient: i64) -> Option<i64> {
    let bare = text.parse().ok();
    bare.or_else(|| Some(bytes(text, step)? / quotient))
}

/// A number, at most one space, and a unit: `b`, or one of kmgtp with `b` or `ib` behind it.
fn bytes(text: &str, step: u64) -> Option<i64> {
    let last = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let (head, suffix) = text.split_at(last + 1);
    let number: f64 = head.strip_suffix(' ').unwrap_or(head).parse().ok()?;
    let factor = factor(&suffix.to_ascii_lowercase(), step)?;
    let fine = number >= 0.0 || number.is_nan();
    fine.then(|| go_integer(number * factor))
}

fn factor(suffix: &str, step: u64) -> Option<f64> {
    let (unit, rest) = suffix.split_at_checked(1).unwrap_or(("", ""));
    let power = match (unit, rest) {
        ("" | "b", "") => return Some(1.0),
        ("k", _) => 1,
        ("m", _) => 2,
        ("g", _) => 3,
        ("t", _) => 4,
        ("p", _) => 5,
        _ => return None,
    };
    matches!(rest, "" | "b" | "ib").then_some((step as f64).powi(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_nothing_or_not_a_size_is_refused() {
        for text in ["", "0", "gb", "1 xb", "-1gb", "0.1kb", "1  gb", "1gib ", "1bb", "true"] {
            assert_eq!(memory_mb(text), None, "{text}");
        }
    }

    /// Compat section 5, sizes.
    #[test]
    fn memory_is_binary_and_volumes_are_decimal() {
        let memory = [
            ("512", 512),
            ("512MiB", 512),
            ("512mb", 512),
            ("2G", 2048),
            ("1.5gb", 1536),
            ("1 GB", 1024),
            ("1048576", 1048576),
            ("1048576b", 1),
            ("1048576.", 1),
            ("-5", -5),
        ];
        for (text, mb) in memory {
            assert_eq!(memory_mb(text), Some(mb), "{text}");
        }
        for (text, gb) in [
            ("1g", 1),
            ("10GiB", 10),
            ("1.5gb", 1),
            ("15Mb", 0),
            ("200", 200),
            ("1 GB", 1),
            ("1pb", 1_000_000),
        ] {
            assert_eq!(volume_gb(text), Some(gb), "{text}");
        }
    }

    #[test]
    fn an_unknown_preset_names_those_of_its_prefix() {
        assert_eq!(preset("shared-cpu-2x").map(|p| (p.cpus, p.memory_mb)), Ok((2, 512)));
        assert_eq!(preset("performance-8x").map(|p| p.memory_mb), Ok(16384));
        let error = preset("shared-cpu-3x").expect_err("there is no such size");
        assert!(error.starts_with("shared-cpu-1x, ") && !error.contains("performance"));
    }
}
