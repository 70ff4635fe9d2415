/**
 * Packs the built page into the Python package: each file compressed, with the licences of what is
 * in it, and a hash of the sources by which a test sees that the page is not of older ones.
 */

import { createHash } from "node:crypto";
import {
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const HERE = dirname(fileURLToPath(import.meta.url));
const WEB = join(HERE, "..");
const BUILT = join(WEB, "dist");
const SOURCES = ["src", "public/models", "index.html", "package-lock.json", "vite.config.ts"];
const STATIC = join(HERE, "../../src/tdmpc_opt/play/static");
const MOST_BYTES = 15e6;
const WORTH_IT = 0.95;

if (!readdirSync(BUILT).includes("agents.json")) {
  console.error("no agent to put into the page; run tools/bundle_agent.py first");
  process.exit(1);
}
writeFileSync(join(BUILT, "licences.txt"), licences());
writeFileSync(join(BUILT, "sources.txt"), `${hashOfSources()}\n`);
rmSync(STATIC, { recursive: true, force: true });
let total = 0;
for (const entry of readdirSync(BUILT, { recursive: true, withFileTypes: true })) {
  if (!entry.isFile()) continue;
  const from = join(entry.parentPath, entry.name);
  const to = join(STATIC, relative(BUILT, from));
  mkdirSync(dirname(to), { recursive: true });
  const packed = gzipSync(readFileSync(from), { level: 9 });
  const smaller = packed.length < WORTH_IT * statSync(from).size;
  if (smaller) writeFileSync(`${to}.gz`, packed);
  else cpSync(from, to);
  total += smaller ? packed.length : statSync(from).size;
}
console.log(
  `packed ${total.toLocaleString("en")} bytes into ${relative(process.cwd(), STATIC)}`,
);
if (total > MOST_BYTES) {
  console.error(
    `that is more than the ${MOST_BYTES.toLocaleString("en")} bytes a page may have`,
  );
  process.exit(1);
}

/** Return the hash of each source's path and content, in the order of the paths. */
function hashOfSources() {
  const files = SOURCES.flatMap((source) => {
    const path = join(WEB, source);
    if (!statSync(path).isDirectory()) return [source];
    const inside = readdirSync(path, { recursive: true, withFileTypes: true });
    return inside
      .filter((e) => e.isFile())
      .map((e) => relative(WEB, join(e.parentPath, e.name)));
  });
  const hash = createHash("sha256");
  for (const file of files.sort())
    hash.update(`${file}\0`).update(readFileSync(join(WEB, file)));
  return hash.digest("hex");
}

/** Return the licences of the libraries in the page. */
function licences() {
  const { dependencies } = JSON.parse(readFileSync(join(WEB, "package.json"), "utf8"));
  const apache = readFileSync(join(WEB, "public/models/LICENSE.dm_control.txt"), "utf8");
  const texts = Object.keys(dependencies).map((name) => {
    const folder = join(WEB, "node_modules", name);
    const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const own = readdirSync(folder).find((file) => /^licen[cs]e/i.test(file));
    const text = own
      ? readFileSync(join(folder, own), "utf8")
      : license === "Apache-2.0"
        ? apache
        : "Its package carries no text of the licence.";
    return `${name} ${version} (${license})\n\n${text.trim()}\n`;
  });
  const models = "The models in models/ are dm_control's: see models/LICENSE.dm_control.txt.\n";
  return [models, ...texts].join(`\n${"=".repeat(80)}\n\n`);
}
