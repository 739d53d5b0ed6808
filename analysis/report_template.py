"""The page of the report, as a Jinja template. Everything put into it is escaped."""

from __future__ import annotations

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2.4rem; border-bottom: 1px solid #bbb; }
h3 { font-size: 1rem; margin-bottom: .2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
caption { text-align: left; padding: .3rem 0; color: #333; }
th, td { padding: .22rem .55rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
thead th { border-bottom: 2px solid #777; background: #f4f4f4; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #333; }
.columns { display: flex; flex-wrap: wrap; gap: 1rem; }
.columns figure { flex: 1 1 20rem; max-width: 29rem; }
.runs code { font-size: .72rem; overflow-wrap: anywhere; }
details { margin: .4rem 0; } summary { cursor: pointer; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; }
nav ul { columns: 2; padding-left: 1.2rem; } code { font-size: .85em; }
</style>
</head>
<body>
{% macro runs(ids) -%}
<details class="runs"><summary>{{ ids | length }} runs</summary><code>{{ ids | join(" ") }}</code></details>
{%- endmacro %}
{% macro show(table) -%}
<div class="wide" tabindex="0" role="region" aria-label="{{ table.caption }}"><table>
<caption>{{ table.caption }}</caption>
<thead><tr>{% for name in table.headers %}<th scope="col">{{ name }}</th>{% endfor %}
{%- if table.run_ids %}<th scope="col">run ids</th>{% endif %}</tr></thead>
<tbody>{% for row in table.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}
{%- if table.run_ids %}<td>{{ runs(table.run_ids[loop.index0]) }}</td>{% endif %}</tr>{% else %}
<tr><td colspan="{{ table.headers | length }}">nothing</td></tr>{% endfor %}
</tbody></table></div>
{%- endmacro %}
{% macro finding(item) -%}
<h3>{{ item.topic }}</h3>
<p>{{ item.text }}</p>
{% if item.run_ids %}{{ runs(item.run_ids) }}{% endif %}
{%- endmacro %}
{% macro picture(image) -%}
<figure><img src="data:image/png;base64,{{ image.data }}" alt="{{ image.alt }}">
<figcaption>{{ image.caption }}</figcaption></figure>
{%- endmacro %}
<header>
<h1>{{ title }}</h1>
<p>{{ question }}</p>
<p>{{ used }} of {{ total }} cells used. Numbers come from the run store and carry their run ids.</p>
</header>
<nav aria-label="Contents"><ul>
{% for id, name in contents %}<li><a href="#{{ id }}">{{ name }}</a></li>{% endfor %}
</ul></nav>
<main>
<section aria-labelledby="results"><h2 id="results">What came out</h2>
{% for item in results %}{{ finding(item) }}{% endfor %}
</section>
<section aria-labelledby="limits"><h2 id="limits">What may not be concluded at this size</h2>
{% for item in limits %}{{ finding(item) }}{% endfor %}
</section>
<section aria-labelledby="design"><h2 id="design">Design</h2>
<dl>{% for name, text in design %}<dt>{{ name }}</dt><dd>{{ text }}</dd>{% endfor %}</dl>
</section>
<section aria-labelledby="ran"><h2 id="ran">What was run and what was lost</h2>
<p>{{ ran }}</p>
{% if lost.rows %}{{ show(lost) }}{% endif %}
</section>
<section aria-labelledby="frontier"><h2 id="frontier">Accuracy against FLOPs</h2>
{{ picture(pareto_image) }}
{{ show(frontier) }}
<details><summary>All configurations, on the frontier or not</summary>{{ show(all_configurations) }}</details>
</section>
<section aria-labelledby="controls"><h2 id="controls">Controls</h2>
{{ show(controls) }}
</section>
<section aria-labelledby="teachers">
<h2 id="teachers">Students and their teachers, with the equal-FLOPs control</h2>
{{ picture(weak_image) }}
<div class="columns">
{% for image in weak_columns %}{{ picture(image) }}{% endfor %}
</div>
<details><summary>The table in full</summary>{{ show(teachers) }}</details>
</section>
<section aria-labelledby="comparisons"><h2 id="comparisons">Comparisons of arms at equal budget</h2>
<p>Paired by seed. Intervals are uncorrected; p is Holm's over all comparisons of the same label and probe
in a table, and
nothing is claimed at a corrected p of 0.05 or more, or when the interval holds 0.</p>
{{ show(differences) }}
<details><summary>At the same student size</summary>{{ show(same_size) }}</details>
<h3>More compute</h3>
{{ show(budgets) }}
</section>
<section aria-labelledby="cost"><h2 id="cost">Cost, probes and repeats of data</h2>
{{ show(cost) }}
</section>
<section aria-labelledby="method"><h2 id="method">How the numbers are made</h2>
<dl>{% for name, text in method %}<dt>{{ name }}</dt><dd>{{ text }}</dd>{% endfor %}</dl>
</section>
</main>
</body>
</html>
"""
