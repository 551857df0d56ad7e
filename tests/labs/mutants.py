"""Wrong answers made of the right ones' text, mechanically: one place of the syntax tree is changed.

:func:`mutants` gives them by name, ``operator: before -> after``. Those that pass are in :data:`SAME`, each
with the reason why it is as right as the solution; the test holds both.
"""

import ast
import copy
import re
from collections.abc import Iterator

# What is as right as the solution: a pattern of steps, one of names (both match whole), and the reason.
_NO_GRADIENT = (
    "completion_mask|sample_token|complete|perplexity|preference_probs|noise_ceiling|pair_accuracy|best_of_n|"
    "exact_gradient|leave_one_out|expected_estimate|best_baseline|mean_and_error|token_rewards|gae|whiten|"
    "explained_variance|group_advantages"
)
_CONSTANTS = (
    "ids|mask|lens|lengths|prompt_ids|prompt_lens|completion_ids|owner|at|rows|before|advantages|A|returns|R|"
    "old|old_values|old_logprobs|ref_logprobs|near_old"
)
SAME = [
    (_NO_GRADIENT, r"detached: .*", "the text asks for no gradient"),
    (".*", rf"detached: ({_CONSTANTS}) -> .*", "a constant, or whole numbers"),
    ("token_logprobs", r"detached: logits -> .*", "only its shape is read there"),
    ("update", r"detached: loss -> loss.detach\(\) #2", "what is told of it needs no graph"),
    (".*", r"another number: 1 -> -1( #\d+)?", "of two axes, the last is axis 1"),
    (".*", r"sign or not dropped: -1 -> 1( #\d+)?", "of two axes, the last is axis 1"),
    (".*", r"arguments swapped: torch\.(minimum|maximum)\(.*", "the smaller of two has no order"),
    ("value_loss|explained_variance", r"sides swapped: (values|near|R|V) - .*", "it is squared"),
    ("best_of_n", r"sides swapped: values\[scores.argsort\(\)\] @ .*", "a product of vectors has no order"),
    ("completion_mask", r"another comparison: .* -> .* <= 0", "a count is never below 0"),
    ("completion_mask", r"sides swapped: ends.cumsum\(1\) - .*", "0 is 0 with either sign"),
    ("token_logprobs", r".*torch.zeros_like\(completion_ids\) -> .*", "what stands at padding is not read"),
    (".*", r"lines swapped: (?!x ).*", "neither line reads what the other one makes"),
    ("complete", r"method dropped: token.item\(\) -> token", "a tensor of one number compares as the number"),
    ("pair_accuracy", r"method dropped: \(chosen > rejected\).double\(\) -> .*", "0.5 times bools is floats"),
    ("best_baseline", r"another function: scores.square\(\).sum\(1\) -> .*mean\(1\)", "D cancels"),
    (".*", r"another correction: .*correction=1\)", "torch's default"),
    ("gae", r"another function: torch.zeros_like\(values\) -> .*", "every number is written over"),
    ("group_advantages", r"another comparison: .*amax.* <= .*", "the largest is never below the smallest"),
    ("reinforce_loss|policy_loss|importance_ratio|kl_penalty", r"another number: 0.0 -> -?1.0( #\d+)?",
     "padding, before it is masked again; of REINFORCE only the gradient counts"),
    ("grpo_loss", r"argument dropped: clipped_surrogate\(ratio, advantages, mask, 0.2, 0.2\) -> .*",
     "the package's default is 0.2, too"),
    ("kl_penalty", r"one argument for the call: torch.where\(mask, ref_logprobs.detach\(\).*",
     "aggregate chooses under the mask; the text asks for no gradient at padding of NaN"),
    ("update", r"without with: with torch.no_grad\(\):", "package_loss detaches the reference"),
]  # fmt: skip


def is_same(step: str, name: str) -> bool:
    """Whether a mutant is as right as the solution, by the table."""
    return any(re.fullmatch(steps, step) and re.fullmatch(names, name) for steps, names, _ in SAME)


Changes = Iterator[tuple[str, ast.AST]]  # an operator, and what it makes of a node

OTHER = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mod,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
}
RELATED = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq, ast.LtE, ast.GtE),
    ast.NotEq: (ast.Eq,),
}
# A function, or a method, and what is taken for it.
NAMES = {
    "mean": ("sum", "median"),
    "sum": ("mean", "prod"),
    "std": ("var",),
    "var": ("std",),
    "amax": ("amin",),
    "amin": ("amax",),
    "maximum": ("minimum",),
    "minimum": ("maximum",),
    "cumsum": ("cumprod",),
    "log_softmax": ("softmax",),
    "logsigmoid": ("sigmoid",),
    "sigmoid": ("tanh", "exp"),
    "expm1": ("exp", "sinh"),
    "exp": ("exp2", "log"),
    "zeros": ("ones",),
    "zeros_like": ("ones_like",),
    "square": ("abs",),
    "argsort": ("argmax",),
    "scatter_add": ("scatter",),
    "comb": ("perm",),
    "randperm": ("arange",),
    "importance_ratio": ("zeros_like",),
}


def _number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _plus(node: ast.expr, by: int) -> ast.expr:
    if _number(node):
        return ast.Constant(node.value + by)
    return ast.BinOp(node, ast.Add() if by > 0 else ast.Sub(), ast.Constant(abs(by)))


def _operators(node: ast.AST) -> Changes:
    if isinstance(node, ast.BinOp) and type(node.op) in OTHER:
        yield "another operator", ast.BinOp(node.left, OTHER[type(node.op)](), node.right)
        yield "left side alone", node.left
        yield "right side alone", node.right
        if isinstance(node.op, ast.Sub | ast.Div | ast.Pow | ast.FloorDiv | ast.MatMult):
            yield "sides swapped", ast.BinOp(node.right, node.op, node.left)
    if isinstance(node, ast.Compare):
        for other in RELATED.get(type(node.ops[0]), ()):
            yield "another comparison", ast.Compare(node.left, [other()], node.comparators)
    if isinstance(node, ast.UnaryOp):
        yield "sign or not dropped", node.operand
    if _number(node):
        for value in {node.value + 1, node.value - 1, 2 * node.value, 0, -node.value} - {node.value}:
            yield "another number", ast.Constant(value)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "True for False", ast.Constant(not node.value)


def _bounds(node: ast.AST) -> Changes:
    if isinstance(node, ast.Slice):
        for name in ("lower", "upper"):
            bound = getattr(node, name)
            for by in (-1, 1):
                moved = (
                    _plus(bound, by) if bound else ast.Constant(by) if (by > 0) == (name == "lower") else None
                )
                if moved is not None:
                    yield "slice off by one", ast.Slice(**{**_fields(node), name: moved})
            if bound:
                yield "slice without a bound", ast.Slice(**{**_fields(node), name: None})
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("range", "reversed")
    ):
        if node.func.id == "reversed":
            yield "order not reversed", node.args[0]
        elif len(node.args) == 1:
            for by in (-1, 1):
                yield "range off by one", ast.Call(node.func, [_plus(node.args[0], by)], [])
            yield "range off by one", ast.Call(node.func, [ast.Constant(1), node.args[0]], [])
    if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Slice | ast.Tuple):
        yield "not indexed", node.value


def _fields(node: ast.Slice) -> dict:
    return {name: getattr(node, name) for name in ("lower", "upper", "step")}


def _calls(node: ast.AST) -> Changes:
    if not isinstance(node, ast.Call):
        return
    args, words = node.args, node.keywords
    for i in range(len(args) - 1):
        swapped = [*args[:i], args[i + 1], args[i], *args[i + 2 :]]
        yield "arguments swapped", ast.Call(node.func, swapped, words)
    for i in range(len(words)):
        yield "keyword dropped", ast.Call(node.func, args, words[:i] + words[i + 1 :])
    for i in range(len(args)):
        yield "argument dropped", ast.Call(node.func, args[:i] + args[i + 1 :], words)
        yield "one argument for the call", args[i]
    if isinstance(node.func, ast.Attribute):
        yield "method dropped", node.func.value
        for other in NAMES.get(node.func.attr, ()):
            yield "another function", ast.Call(ast.Attribute(node.func.value, other, ast.Load()), args, words)
        if node.func.attr in ("std", "var"):
            for correction in (0, 1, 2):
                rest = [word for word in words if word.arg != "correction"]
                kept = [*rest, ast.keyword("correction", ast.Constant(correction))]
                yield "another correction", ast.Call(node.func, args, kept)


def _gradients(node: ast.AST) -> Changes:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        if node.id in ("torch", "math", "range", "len", "reversed", "package", "losses", "rollout"):
            return
        detached = ast.Call(ast.Attribute(node, "detach", ast.Load()), [], [])
        yield "detached", detached
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in ("T",):
        yield "not transposed", node.value


def _changes(node: ast.AST) -> Changes:
    for operator in (_operators, _bounds, _calls, _gradients):
        yield from operator(node)


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every node below a function's body: its parent, the field, the place in a list, and the node."""
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if isinstance(parent, ast.FunctionDef) and name != "body":
                continue
            children = value if isinstance(value, list) else [value]
            for i, child in enumerate(children):
                if isinstance(child, ast.AST):
                    yield parent, name, i if isinstance(value, list) else None, child


def _statements(body: list[ast.stmt]) -> Iterator[tuple[str, list[ast.stmt]]]:
    """A list of statements with one of them changed."""
    for i, line in enumerate(body):
        if not isinstance(line, ast.Return) and not (isinstance(line, ast.Expr) and _is_text(line.value)):
            yield f"line dropped: {_short(line)}", [*body[:i], ast.Pass(), *body[i + 1 :]]
        if isinstance(line, ast.If):
            for value in (True, False):
                always = ast.If(ast.Constant(value), line.body, line.orelse)
                yield f"always {value}: {_short(line)}", [*body[:i], always, *body[i + 1 :]]
        if isinstance(line, ast.With):
            yield f"without with: {_short(line)}", [*body[:i], *line.body, *body[i + 1 :]]
        if isinstance(line, ast.For):
            once = ast.For(line.target, line.iter, [*line.body, ast.Break()], [])
            yield f"first round alone: {_short(line)}", [*body[:i], once, *body[i + 1 :]]
        text = isinstance(line, ast.Expr) and _is_text(line.value)
        if i + 1 < len(body) and not isinstance(body[i + 1], ast.Return) and not text:
            yield f"lines swapped: {_short(line)}", [*body[:i], body[i + 1], line, *body[i + 2 :]]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _short(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0]


def _edited(tree: ast.Module) -> Iterator[tuple[str, ast.Module]]:
    for at in range(sum(1 for _ in _places(tree))):
        _, _, _, node = _nth(tree, at)
        for which, (name, _) in enumerate(_changes(node)):
            new = copy.deepcopy(tree)
            parent, field, i, node = _nth(new, at)
            change = list(_changes(node))[which][1]
            before, after = _short(node), _short(change)
            if i is None:
                setattr(parent, field, change)
            else:
                getattr(parent, field)[i] = change
            yield f"{name}: {before} -> {after}", new
    bodies = [n for n in ast.walk(tree) if isinstance(getattr(n, "body", None), list)]
    for at, node in enumerate(bodies):
        if isinstance(node, ast.Module):
            continue
        for name, body in _statements(node.body):
            new = copy.deepcopy(tree)
            place = [n for n in ast.walk(new) if isinstance(getattr(n, "body", None), list)][at]
            place.body = copy.deepcopy(body)
            yield name, new


def _nth(tree: ast.AST, at: int) -> tuple[ast.AST, str, int | None, ast.AST]:
    return next(place for i, place in enumerate(_places(tree)) if i == at)


def mutants(source: str) -> dict[str, str]:
    """Texts of a function with one thing changed, by name; those that cannot be compiled are left out."""
    source = re.sub(r"^ *### .*\n", "", source, flags=re.MULTILINE)
    tree, found = ast.parse(source), {}
    seen = {ast.unparse(tree)}
    for name, new in _edited(tree):
        try:
            text = ast.unparse(ast.fix_missing_locations(new))
            compile(text, name, "exec")
        except (SyntaxError, ValueError, TypeError, AttributeError):
            continue
        if text not in seen:
            seen.add(text)
            again = sum(other.split(" #")[0] == name for other in found)
            found[f"{name} #{again + 1}" if again else name] = text
    return found
