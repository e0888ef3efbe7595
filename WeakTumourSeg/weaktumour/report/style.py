"""The page's style sheet and its few lines of script. Pictures sit on black on any screen;
print is always light."""

STYLE = """
:root{--mr:.5;--page:#f4f5f7;--card:#fff;--ink:#16202b;--soft:#5b6876;--rule:#dde2e8;--accent:#0b6bcb;
--good:#136c3b;--good-back:#e0f4e8;--warn:#8a4b00;--warn-back:#fff1d6;--bad:#a3201d;--bad-back:#fde5e4;
--calm:#44505c;--calm-back:#e9edf1}
@media screen and (prefers-color-scheme:dark){:root{
--page:#0e1216;--card:#171d23;--ink:#e6ebf0;--soft:#98a5b2;--rule:#2b343d;--accent:#6db3f8;
--good:#7fdca4;--good-back:#143524;--warn:#ffc66d;--warn-back:#3b2a0c;--bad:#ff9c97;--bad-back:#431b1a;
--calm:#c0cad4;--calm-back:#28313a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:20px 20px 48px}
h1{font-size:24px;margin:0;line-height:1.2}h2{font-size:19px;margin:0;line-height:1.3}
h3{font-size:15px;margin:0 0 6px}
p{margin:4px 0}.soft,.row p,caption{color:var(--soft)}
header{display:flex;flex-wrap:wrap;gap:8px 24px;align-items:baseline;justify-content:space-between;
margin-bottom:14px}
.research{font-weight:600;color:var(--warn);background:var(--warn-back);padding:3px 10px;border-radius:5px}
section{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:16px 18px;margin:0 0 16px}
.verdict{border-left:6px solid}.ok{border-left-color:var(--good)}.check_alignment{border-left-color:var(--bad)}
.verdict ul{margin:6px 0 0;padding-left:20px}
.strip{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px 22px}
.strip div,.facts div{min-width:0}.strip dt,.facts dt{color:var(--soft);font-size:12.5px}
.strip dd,.facts dd{margin:0;font-weight:600;font-size:17px;overflow-wrap:anywhere;
font-variant-numeric:tabular-nums}
.facts dd{font-size:15px}.strip dd small,.facts dd small{display:block;font-weight:400;font-size:12.5px;
color:var(--soft)}
dl{margin:0}.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(135px,1fr));gap:8px 18px;margin:10px 0}
.head{display:flex;flex-wrap:wrap;gap:6px 14px;align-items:center}
.swatch{width:14px;height:14px;border-radius:4px;outline:1px solid #0006}
.badge{font-size:13px;font-weight:600;padding:2px 10px;border-radius:20px;background:var(--calm-back);
color:var(--calm)}
.badge.localised{background:var(--good-back);color:var(--good)}
.badge.approximate{background:var(--warn-back);color:var(--warn)}
.badge.cannot_be_localised,.badge.outside_ct{background:var(--bad-back);color:var(--bad)}
.warning{background:var(--warn-back);color:var(--warn);border-radius:5px;padding:6px 10px;margin:6px 0}
.warning::before{content:"\\26A0  "}
.tools{position:sticky;top:0;z-index:5;display:flex;flex-wrap:wrap;gap:6px 22px;align-items:center;
background:var(--card);border:1px solid var(--rule);
border-radius:8px;padding:7px 18px;margin:0 0 16px;font-size:13.5px}
.tools label{display:inline-flex;gap:8px;align-items:center}
.key{display:inline-flex;gap:6px;align-items:center;color:var(--soft)}
.key svg{width:26px;height:10px;background:#222;border-radius:2px}
.row{display:grid;grid-template-columns:128px repeat(3,minmax(0,1fr));gap:8px;margin-top:8px;break-inside:avoid}
.row p{font-size:12.5px;line-height:1.4;margin:0}
.planes{color:var(--soft);font-size:13px;text-align:center;margin-top:12px}
.picture{display:block;width:100%;height:auto;background:#000;border-radius:4px;print-color-adjust:exact;
-webkit-print-color-adjust:exact}
.press{cursor:pointer}.press .held,.press:active .shown{display:none}.press:active .held{display:inline}
.store{position:absolute}.mr{opacity:var(--mr)}.nolines .lines{display:none}
.line,.casing,.truth,.likely,.edge,.scale{fill:none;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.line{stroke-width:1.6px}.casing{stroke:#000;stroke-opacity:.55;stroke-width:3.2px}
.truth{stroke-width:1.5px;stroke-dasharray:5 4}.likely{stroke-width:1.4px}
.edge{stroke:#9fb3c8;stroke-width:1px;stroke-dasharray:1.5 3.5}.scale{stroke:#fff;stroke-width:1.6px}
.marks text{fill:#fff;stroke:#000;stroke-opacity:.75;stroke-width:2.6px;paint-order:stroke;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.marks .letter{text-anchor:middle;dominant-baseline:middle;fill:#ffd97a;font-weight:600}.marks .note{fill:#ffb4a8}
.bar{width:100%;max-width:130px;margin-top:6px;display:block;print-color-adjust:exact;
-webkit-print-color-adjust:exact}.bar text{font-size:10.5px;fill:var(--ink)}
.tables{columns:2;column-gap:34px}.tables>div{break-inside:avoid;margin-bottom:18px}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:3px 10px 3px 0;border-bottom:1px solid var(--rule);vertical-align:top;
overflow-wrap:anywhere}
th{font-weight:600}td.n,th.n{text-align:right}.wide{overflow-x:auto;margin:8px 0 14px}.narrow{max-width:420px}
.wide table{min-width:640px}
.tables td:first-child{min-width:11em}h2+.tables{margin-top:10px}
.time{display:block;height:8px;background:var(--accent);opacity:.75;border-radius:2px;min-width:1px}
code{font-family:ui-monospace,Consolas,"DejaVu Sans Mono",monospace;font-size:12px}
footer{color:var(--soft);font-size:12.5px}
@media screen and (max-width:760px){.row{grid-template-columns:repeat(3,minmax(0,1fr))}
.row>div:first-child{grid-column:1/-1}.tables{columns:1}.planes>div:first-child{display:none}}
@media print{@page{size:A4;margin:12mm}body{background:#fff;font-size:11px}main{max-width:none;padding:0}
section{border-color:#bbb;padding:10px 12px}
.tools{position:static;break-after:avoid}.tools label{display:none}.tumour+.tumour{break-before:page}
.strip,.facts{grid-template-columns:repeat(auto-fit,minmax(82px,1fr))}.strip dd{font-size:13px}.row h3{font-size:11px}
.strip dt,.facts dt{font-size:9.5px}h2,h3{break-after:avoid}.strip small,.facts small{font-size:9px!important}
.row{grid-template-columns:84px repeat(3,minmax(0,1fr));gap:5px;margin-top:5px}
.row p{font-size:9.5px}h1{font-size:20px}h2{font-size:15px}.facts{margin:6px 0;gap:4px 12px}
.facts dd{font-size:12px}table{font-size:10.5px}}
"""

SCRIPT = """
(function(){var root=document.documentElement,blend=document.getElementById('blend'),
lines=document.getElementById('lines');
blend.addEventListener('input',function(){root.style.setProperty('--mr',blend.value/100)});
lines.addEventListener('change',function(){root.classList.toggle('nolines',!lines.checked)});
document.addEventListener('dragstart',function(e){
if(e.target.closest&&e.target.closest('.press'))e.preventDefault()})})();
"""
