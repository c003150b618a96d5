//! Sizes as flyctl reads them: memory in binary units, volumes in decimal ones, and the presets.

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

/// Memory in MB: a bare number is MB, else binary units of any case (T-24). Zero is refused.
pub(crate) fn memory_mb(text: &str) -> Option<u32> {
    let (number, unit) = split_unit(text)?;
    let mb = match unit.as_str() {
        "" | "m" | "mb" | "mib" => number,
        "b" => number / (1024.0 * 1024.0),
        "k" | "kb" | "kib" => number / 1024.0,
        "g" | "gb" | "gib" => number * 1024.0,
        "t" | "tb" | "tib" => number * 1024.0 * 1024.0,
        _ => return None,
    };
    (mb >= 1.0 && mb <= f64::from(u32::MAX)).then_some(mb as u32)
}

/// A volume's size in whole GB: a bare number is GB, else decimal units, cut off (T-23).
pub(crate) fn volume_gb(text: &str) -> Option<u32> {
    let (number, unit) = split_unit(text)?;
    let gb = match unit.as_str() {
        "" | "g" | "gb" | "gib" => number,
        "b" => number / 1e9,
        "k" | "kb" | "kib" => number / 1e6,
        "m" | "mb" | "mib" => number / 1e3,
        "t" | "tb" | "tib" => number * 1e3,
        _ => return None,
    };
    (gb >= 0.0 && gb <= f64::from(u32::MAX)).then_some(gb as u32)
}

fn split_unit(text: &str) -> Option<(f64, String)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim().to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_nothing_or_not_a_size_is_refused() {
        for text in ["", "0", "gb", "1 xb", "-1", "0.1kb"] {
            assert_eq!(memory_mb(text), None, "{text}");
        }
    }

    #[test]
    fn memory_is_binary_and_volumes_are_decimal() {
        let memory = [("512", 512), ("512MiB", 512), ("2G", 2048), ("1.5gb", 1536), ("1 GB", 1024)];
        for (text, mb) in memory {
            assert_eq!(memory_mb(text), Some(mb), "{text}");
        }
        for (text, gb) in [("1g", 1), ("10GiB", 10), ("1.5gb", 1), ("15Mb", 0), ("200", 200)] {
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
