//! What a record says of the program that made it.

use std::time::{SystemTime, UNIX_EPOCH};

/// The commit that was given, else the one that was built in, else `unknown`.
pub fn commit(given: Option<&str>) -> String {
    given.or(option_env!("KEYNORM_COMMIT")).unwrap_or("unknown").into()
}

/// The version in the lock file that this program was built with.
pub fn wgpu_version() -> String {
    let lock = include_str!("../../Cargo.lock");
    let after = lock.split("name = \"wgpu\"\nversion = \"").nth(1).unwrap_or("unknown\"");
    after.split('"').next().unwrap_or_default().into()
}

/// The command line; of paths only the file names.
pub fn command() -> String {
    ["bench".to_owned()]
        .into_iter()
        .chain(std::env::args().skip(1).map(|a| shortened(&a)))
        .collect::<Vec<_>>()
        .join(" ")
}

/// An argument, `--name=value` or a list of values, each a path's last part.
fn shortened(arg: &str) -> String {
    let (name, values) = match arg.split_once('=') {
        Some((name, values)) if name.starts_with("--") => (format!("{name}="), values),
        _ => (String::new(), arg),
    };
    let short: Vec<_> = values.split(',').map(|value| value.rsplit(['/', '\\']).next().unwrap_or_default()).collect();
    name + &short.join(",")
}

/// The day in UTC, by Howard Hinnant's `civil_from_days`.
pub fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let z = seconds / 86400 + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn commands_name_files_and_options() {
        for (arg, expected) in [
            ("--peers", "--peers"),
            ("a/t16.json,b/t32.json", "t16.json,t32.json"),
            ("--output-json=out/o.json", "--output-json=o.json"),
            ("8x1024,8x4096", "8x1024,8x4096"),
        ] {
            assert_eq!(shortened(arg), expected);
        }
    }
}
