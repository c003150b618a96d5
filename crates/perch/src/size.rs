//! Amounts of memory as people write them.

use serde::Deserialize;

/// Bytes, written as text: `"512MiB"`, `"2GB"`, `"1073741824"`. `K`, `M`, `G` and `T` alone count in 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

impl Size {
    /// Reads one.
    ///
    /// # Errors
    /// With what it should look like.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no amount of memory; write it like 512MiB or 2GB");
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1_u64 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(bad()),
        };
        number.checked_mul(unit).map(Self).ok_or_else(bad)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match UNITS.iter().find(|(unit, _)| *unit <= self.0) {
            Some((unit, name)) if self.0.is_multiple_of(*unit) => {
                write!(f, "{} {name}", self.0 / unit)
            }
            Some((unit, name)) => write!(f, "{:.1} {name}", self.0 as f64 / *unit as f64),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_people_write_them() {
        let read = |text| Size::parse(text).map(|size| size.0);
        assert_eq!(read("512MiB"), Ok(512 << 20));
        assert_eq!(read("2 gb"), Ok(2_000_000_000));
        assert_eq!((read("1G"), read("7")), (Ok(1 << 30), Ok(7)));
        for bad in ["", "G", "-1", "1.5G", "1 PiB", "99999999999T", "1G2"] {
            let error = Size::parse(bad).expect_err(bad);
            assert!(error.contains("512MiB"), "{error}");
        }
        let shown = |bytes| Size(bytes).to_string();
        assert_eq!((shown(2 << 30), shown(1_600_000)), ("2 GiB".into(), "1.5 MiB".into()));
        assert_eq!(shown(9), "9 bytes");
    }
}
